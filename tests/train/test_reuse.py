"""What is taken over from another run: known by fine centers, copied byte by byte, refused where it does not fit."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import fingerprint_fields
from mode_ray.config.train import TrainConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.stages.manifest import Stage
from mode_ray.storage import Location
from mode_ray.train.plan import DENSE, SEED, Trial, plan_trials
from mode_ray.train.reuse import Takeover, copy_models, matching_experts, plan_takeover
from mode_ray.train.runs.status import initial_statuses, read_status
from mode_ray.train.runs.trial import planned_trials_of

OLD_MAP, NEW_MAP = [0, 0, 1, 1], [0, 0, 1, 1, 2, 2]
MODEL_CFG = {"embed_dim": 16, "vision_cfg": {"layers": 1}, "text_cfg": {"layers": 1}}
FILES = ("open_clip_config.json", "open_clip_model.safetensors", "metrics.json", "progress.json", "tokenizer.json")


def clustering(group_m: Sequence[int], n: int, encoder: str = "tiny", seed: int = 0) -> Clustering:
    m = len(group_m)
    return Clustering(
        centers_md=np.random.default_rng(seed).normal(size=(10, 4)).astype(np.float32)[:m],
        prices_m=np.zeros(m),
        mass_m=np.full(m, 5),
        squared_distance_m=np.ones(m),
        encoder_name=encoder,
        coarse={n: np.array(group_m, np.int32)},
    )


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CFG}))
    return tmp_path / "model"


@pytest.fixture
def make_train(model_folder: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**fields: Any) -> TrainConfig:  # noqa: ANN401
        return TrainConfig.model_validate(
            {
                "model": {"architecture": str(model_folder)},
                "dense_samples": 64,
                "seed_share": 0.5,
                "batch_size": 8,
                "experts": 3,
                "reuse": str(tmp_path / "old"),
                **fields,
            }
        )

    return make


def planned(config: TrainConfig) -> list[Trial]:
    return plan_trials(config, np.full(config.experts, 10), list(range(config.experts)))


@pytest.fixture
def old(tmp_path: Path, make_train: Callable[..., TrainConfig]) -> Path:
    """A finished run of two experts, as far as it matters."""
    run = Location.parse(str(tmp_path / "old"))
    config = make_train(experts=2, reuse=None, dense_samples=128)
    clustering(OLD_MAP, 2).save(run / "clusters")
    trials = planned(config)
    for trial in trials:
        folder = run / "experts" / trial.name
        for name in FILES:
            (folder / name).write_text(f"{name} of {trial.name}")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**MODEL_CFG, "init_logit_bias": -10}}))
        (folder / "status.json").write_text("{}")
        (folder / "checkpoints" / "left").write_text("x")
    (run / "experts" / SEED / "training_state.pt").write_text("optimizer")
    Stage("train", run / "experts", fingerprint_fields(config, "train")).finish(
        [], {"trials": [asdict(trial) for trial in trials]}
    )
    return tmp_path / "old"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def experts(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "new" / "experts"))


@pytest.fixture
def plan(old: Path, experts: Location, make_train: Callable[..., TrainConfig]) -> Callable[..., Takeover]:
    """Plans a takeover of a run with these fields and this clustering."""

    def make(now: Clustering | None = None, **fields: Any) -> Takeover:  # noqa: ANN401
        config = make_train(**fields)
        now = now or clustering(NEW_MAP, config.experts)
        return plan_takeover(config, planned(config), now, experts, experts.parent / "clusters")

    return make


class TestKnownExperts:
    @pytest.mark.parametrize(
        ("before", "now", "expected"),
        [
            ([0, 0, 1, 1], [0, 0, 1, 1], {0: 0, 1: 1}),
            ([0, 0, 1, 1], [0, 0, 1, 1, 2, 2], {0: 0, 1: 1}),
            ([0, 0, 1, 1], [0, 0, 1, 1, 0, 1], {0: 0, 1: 1}),
            ([0, 0, 1, 1], [2, 2, 0, 0, 1], {2: 0, 0: 1}),
            ([0, 0, 1, 1], [0, 1, 2, 2], {2: 1}),
            ([0, 0, 1, 1], [0, 1, 0, 1], {}),
            ([0, 0, 1, 1], [0, 0, 0, 0], {}),
        ],
        ids=["same", "new-expert", "grown", "renumbered", "one-split", "others", "all-in-one"],
    )
    def test_by_the_old_centers_they_own(self, before: list[int], now: list[int], expected: dict[int, int]) -> None:
        assert matching_experts(np.array(before), np.array(now)) == expected


class TestPlan:
    def test_all_but_the_new_expert_is_taken_over_as_it_was_trained(self, plan: Callable[..., Takeover]) -> None:
        takeover = plan()
        assert sorted(takeover.sources) == [DENSE, "n3/00", "n3/01", SEED]
        assert takeover.sources["n3/01"].uri.endswith("old/experts/n2/01")
        by_name = {trial.name: trial for trial in takeover.trials}
        assert (by_name[SEED].samples, by_name[DENSE].samples) == (64, 128)
        taken, new = by_name["n3/01"], by_name["n3/02"]
        assert (taken.samples, taken.members.experts, taken.members.expert) == (32, 2, 1)
        assert (new.samples, new.members.experts, new.parent) == (8, 3, SEED)

    def test_the_summary_says_what_came_from_where_and_what_differs(self, plan: Callable[..., Takeover]) -> None:
        summary = plan().summary
        assert summary["trained"] == ["n3/02"]
        assert summary["taken"]["n3/00"].endswith("old/experts/n2/00")
        assert summary["fields_that_differ"] == {"train.dense_samples": [128, 64], "train.experts": [2, 3]}
        json.dumps(summary)

    def test_without_reuse_nothing_is_taken(self, plan: Callable[..., Takeover]) -> None:
        assert plan(reuse=None).sources == {}

    def test_the_same_clustering_with_another_n_shares_what_it_can(self, plan: Callable[..., Takeover]) -> None:
        takeover = plan(clustering([0, 1, 2, 2], 3))
        assert sorted(takeover.sources) == [DENSE, "n3/02", SEED]

    def test_of_another_clustering_only_seed_and_dense_serve(self, plan: Callable[..., Takeover]) -> None:
        assert sorted(plan(clustering(NEW_MAP, 3, seed=1)).sources) == [DENSE, SEED]
        assert sorted(plan(clustering(NEW_MAP, 3, encoder="other")).sources) == [DENSE, SEED]

    def test_controls_are_always_trained(self, plan: Callable[..., Takeover]) -> None:
        takeover = plan(controls=["dense", "random"])
        assert not [name for name in takeover.sources if name.startswith("random")]

    def test_only_what_may_be_taken_is_taken(self, plan: Callable[..., Takeover]) -> None:
        assert sorted(plan(reuse_models=["seed"]).sources) == [SEED]
        assert sorted(plan(reuse_models=["seed", "dense"]).sources) == [DENSE, SEED]

    def test_a_dense_run_that_is_not_wanted_is_not_taken(self, plan: Callable[..., Takeover]) -> None:
        assert DENSE not in plan(controls=[]).sources


class TestRefusals:
    def test_another_architecture(self, plan: Callable[..., Takeover], model_folder: Path, experts: Location) -> None:
        other = {"model_cfg": {**MODEL_CFG, "embed_dim": 32}}
        (model_folder / "open_clip_config.json").write_text(json.dumps(other))
        with pytest.raises(UsageError, match="another architecture: embed_dim is 16 there and 32 here"):
            plan()
        assert not experts.exists()

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"seed_share": 0.25}, r"train\.seed_share was 0\.5 there and is 0\.25 here"),
            ({"loss": {"kind": "siglip"}}, r"train\.loss\.kind was 'clip' there and is 'siglip' here"),
            ({"model": {"pretrained": "openai"}}, r"train\.model\.pretrained was None there and is 'openai' here"),
        ],
    )
    def test_another_start(self, plan: Callable[..., Takeover], fields: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            plan(**fields)

    def test_a_run_that_is_not_finished(self, plan: Callable[..., Takeover], old: Path) -> None:
        (old / "experts" / "manifest.json").unlink()
        with pytest.raises(UsageError, match="its train stage is not done"):
            plan()

    def test_the_run_itself(self, old: Path, make_train: Callable[..., TrainConfig]) -> None:
        config, own = make_train(), Location.parse(str(old))
        with pytest.raises(UsageError, match="is this run itself"):
            plan_takeover(config, planned(config), clustering(NEW_MAP, 3), own / "experts", own / "clusters")

    def test_a_model_that_is_gone(self, plan: Callable[..., Takeover], old: Path, experts: Location) -> None:
        takeover = plan()
        (old / "experts/n2/01/open_clip_model.safetensors").unlink()
        with pytest.raises(DataError, match=r"n2/01: incomplete model: open_clip_model\.safetensors is missing"):
            copy_models(takeover, experts)


class TestCopies:
    def test_model_metrics_and_optimizer_are_the_same_bytes_and_the_old_run_is_left_alone(
        self, plan: Callable[..., Takeover], old: Path, experts: Location
    ) -> None:
        before = contents(old)
        copy_models(plan(), experts)
        assert contents(old) == before
        for name, source in (("seed", "seed"), ("dense", "dense"), ("n3/00", "n2/00"), ("n3/01", "n2/01")):
            copied, given = contents(Path(experts.path) / name), contents(old / "experts" / source)
            own = {"status.json": copied.pop("status.json")}
            assert copied == {file: data for file, data in given.items() if file in copied}
            assert set(copied) == {*FILES, *(["training_state.pt"] if name == "seed" else [])}
            assert json.loads(own["status.json"])["taken_from"] == str(old / "experts" / source)
        assert not (experts / "n3/02").exists()

    def test_the_scheduler_sees_them_finished(self, plan: Callable[..., Takeover], experts: Location) -> None:
        takeover = plan()
        copy_models(takeover, experts)
        states = {name: status.state for name, status in initial_statuses(takeover.trials, experts).items()}
        assert states.pop("n3/02") == "waiting"
        assert set(states.values()) == {"finished"}
        status = read_status(experts / "n3/00")
        assert status is not None
        assert (status.samples, status.launches) == (32, 0)

    def test_after_a_failure_only_the_rest_is_copied(
        self, plan: Callable[..., Takeover], experts: Location, tmp_path: Path
    ) -> None:
        takeover = plan()
        *first, third, fourth = takeover.sources
        weights = Path(takeover.sources[third].path) / "open_clip_model.safetensors"
        moved = weights.rename(tmp_path / "moved")
        with pytest.raises(DataError, match="incomplete model"):
            copy_models(takeover, experts)
        assert read_status(experts / fourth) is None
        written = {name: Path((experts / name / "metrics.json").path).stat().st_mtime_ns for name in first}
        moved.rename(weights)
        copy_models(takeover, experts)
        assert written == {name: Path((experts / name / "metrics.json").path).stat().st_mtime_ns for name in first}
        assert all(read_status(experts / name) is not None for name in takeover.sources)


def test_trials_come_back_from_a_manifest_as_they_were(old: Path, make_train: Callable[..., TrainConfig]) -> None:
    manifest = Stage("train", Location.parse(str(old / "experts")), {}).manifest()
    assert manifest is not None
    assert planned_trials_of(manifest.summary) == planned(make_train(experts=2, dense_samples=128))
    with_more = replace(manifest, summary={"trials": []})
    assert planned_trials_of(with_more.summary) == []
