"""Finished stages of equal fields are copied; nothing else is."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mode_ray.captions.listing import list_work_units
from mode_ray.config.load import with_values
from mode_ray.config.run import RunConfig
from mode_ray.pipeline import build_stages
from mode_ray.stages.run import Run
from mode_ray.storage import Location
from mode_ray.study.reuse import copy_finished_stages, delete_weights


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run over one shard without finished stages."""
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": [b"x"], "caption": ["a"]}), tmp_path / "data/a.parquet")
    return RunConfig.model_validate(
        {
            "run": str(tmp_path / "a"),
            "captions": {"paths": [str(tmp_path / "data")]},
            "cluster": {"fine": {"centers": 8}, "coarse": {"experts": [2, 4]}},
            "train": {"experts": 4, "dense_samples": 8, "batch_size": 8},
        }
    )


def finish(config: RunConfig, *names: str) -> None:
    """Finish stages of a run, each with an output."""
    stages = build_stages(Run(config, list_work_units(config.captions)))
    for name in names:
        stages[name].begin(1)
        (stages[name].directory / "below" / "output.txt").write_text(name)
        stages[name].finish([], {})


def states(config: RunConfig) -> dict[str, str]:
    return {name: stage.state() for name, stage in build_stages(Run(config, list_work_units(config.captions))).items()}


def other(config: RunConfig, **changes: object) -> RunConfig:
    return with_values(config, {"run": f"{config.run}-other", **changes})


def on_features(config: RunConfig) -> RunConfig:
    """The run, with training on features of a pretrained trunk."""
    lock = {"image": "all", "text": "all"}
    return with_values(
        config, {"train.data.mode": "features", "train.model.lock": lock, "train.model.pretrained": "openai"}
    )


class TestFeatures:
    def test_runs_of_other_clusters_and_seeds_share_them(self, config: RunConfig) -> None:
        config = on_features(config)
        finish(config, "embed", "cluster", "assign", "features")
        wanted = other(config, **{"cluster.fine.centers": 16, "train.seed": 3, "train.controls": ["dense", "random"]})
        copied = copy_finished_stages(wanted, [config.directory])
        assert set(copied) == {"embed", "features"}
        assert states(wanted)["features"] == "done"

    def test_other_views_or_locks_are_computed(self, config: RunConfig) -> None:
        config = on_features(config)
        finish(config, "embed", "features")
        for changes in ({"features.views": 2}, {"train.model.lock.text": {"groups": 1}}):
            assert set(copy_finished_stages(other(config, **changes), [config.directory])) == {"embed"}
            other(config).directory.delete()

    def test_on_one_disk_a_copy_is_the_same_file(self, config: RunConfig) -> None:
        config = on_features(config)
        finish(config, "features")
        copy_finished_stages(other(config), [config.directory])
        files = [Path((run.directory / "features/below/output.txt").path) for run in (config, other(config))]
        assert files[0].samefile(files[1])

    def test_training_depends_on_them_and_they_on_no_stage_before(self, config: RunConfig) -> None:
        stages = build_stages(Run(on_features(config), list_work_units(config.captions)))
        assert list(stages) == ["embed", "cluster", "assign", "features", "train", "evaluate"]
        inputs = {
            name: {field for field in stage.fields if field.startswith("inputs.")} for name, stage in stages.items()
        }
        assert inputs["features"] == set()
        assert inputs["train"] == {"inputs.assign", "inputs.features"}
        assert inputs["evaluate"] == {"inputs.train"}


def test_weights_that_no_other_run_reuses_are_deleted(config: RunConfig) -> None:
    experts = config.directory / "experts"
    names = [
        f"{model}/{file}"
        for model in ("seed", "dense", "n4/00")
        for file in ("open_clip_model.safetensors", "metrics.json")
    ]
    for name in names:
        (experts / name).write_text("x")
    reusing = other(config, **{"train.reuse": config.run, "train.reuse_models": ["seed", "dense"]})

    def left() -> list[str]:
        return [name for name in names if (experts / name).exists()]

    delete_weights(config, [config, reusing])
    assert left() == [name for name in names if name != "n4/00/open_clip_model.safetensors"]
    delete_weights(config, [config])
    assert left() == [name for name in names if name.endswith(".json")]


class TestCopying:
    def test_a_run_with_other_experts_gets_all_that_comes_before_them(self, config: RunConfig) -> None:
        finish(config, "embed", "cluster", "assign", "train")
        wanted = with_values(config, {"run": f"{config.run}-other", "train.experts": 2})
        copied = copy_finished_stages(wanted, [config.directory])
        assert set(copied) == {"embed", "cluster", "assign"}
        assert states(wanted) == {
            "embed": "done",
            "cluster": "done",
            "assign": "done",
            "train": "absent",
            "evaluate": "absent",
        }
        assert (wanted.directory / "clusters/below/output.txt").read_text() == "cluster"

    def test_with_another_m_only_the_embeddings_serve(self, config: RunConfig) -> None:
        finish(config, "embed", "cluster", "assign")
        wanted = with_values(config, {"run": f"{config.run}-other", "cluster.fine.centers": 16})
        assert set(copy_finished_stages(wanted, [config.directory])) == {"embed"}

    def test_what_is_not_finished_or_was_begun_is_left_alone(self, config: RunConfig) -> None:
        finish(config, "embed")
        wanted = other(config)
        build_stages(Run(wanted, list_work_units(wanted.captions)))["embed"].begin(1)
        assert copy_finished_stages(wanted, [config.directory]) == {}
        assert states(wanted)["embed"] == "started"
        assert states(wanted)["cluster"] == "absent"

    def test_nothing_is_copied_from_the_run_itself_or_from_nowhere(self, config: RunConfig) -> None:
        assert copy_finished_stages(config, [config.directory, Location.parse("/nowhere")]) == {}

    def test_the_first_that_fits_is_taken(self, config: RunConfig) -> None:
        unlike = with_values(config, {"run": f"{config.run}-unlike", "cluster.fine.centers": 16})
        finish(unlike, "embed", "cluster")
        finish(config, "embed", "cluster")
        copied = copy_finished_stages(other(config), [unlike.directory, config.directory])
        assert copied == {
            "embed": unlike.directory / "embeddings",
            "cluster": config.directory / "clusters",
        }
