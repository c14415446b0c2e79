"""`mode_ray.run`: the pipeline from Python, resumable, on the Ray that is there."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mode_ray
from mode_ray.errors import UsageError

SIZES, THINGS = ("small", "large", "red", "old"), ("cat", "dog", "bus", "tree")
CAPTIONS = [f"a {size} {thing}" for size in SIZES for thing in THINGS]


def config_of(folder: Path) -> mode_ray.RunConfig:
    (folder / "captions").mkdir()
    pq.write_table(pa.table({"caption": CAPTIONS}), folder / "captions/a.parquet")
    return mode_ray.RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder / "captions")]},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "embed": {"pool": {"max_actors": 1}},
            "cluster": {"fine": {"centers": 4}, "coarse": {"experts": [2]}},
            "assign": {"pool": {"max_actors": 1}},
            "train": {"experts": 2, "dense_samples": 64},
        }
    )


def test_stages_run_until_the_one_that_is_named_and_are_skipped_afterwards(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path)
    run = mode_ray.run(config, until="assign", quiet=True)
    states = {name: view.state for name, view in run.status().items()}
    assert states == {"embed": "done", "cluster": "done", "assign": "done", "train": "absent", "evaluate": "absent"}
    assert run.status()["assign"].units == 1
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="the evaluate stage is not done"):
        _ = run.report
    manifest = tmp_path / "run/assignments/manifest.json"
    written = manifest.stat().st_mtime_ns
    again = mode_ray.run(config, until="assign", quiet=True)
    assert (again.directory, manifest.stat().st_mtime_ns) == (str(tmp_path / "run"), written)
    clustering = mode_ray.Clustering.load(tmp_path / "run/clusters")
    fine, _ = clustering.assign(CAPTIONS)
    assert set(clustering.expert_of(fine, n=2).tolist()) == {0, 1}


def test_an_unknown_stage_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="until='fit': the stages are embed, cluster, assign, features, train, evaluate"
    ):
        mode_ray.run(config_of(tmp_path), until="fit")
    assert not (tmp_path / "run").exists()
