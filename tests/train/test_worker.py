"""One trial from start to its expert folder, through Ray Train: in this process, and once on a real Ray."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray.train
import safetensors.torch
import torch

from mode_ray.captions.shards import Shard
from mode_ray.cluster.clustering import Clustering
from mode_ray.config import RunConfig
from mode_ray.errors import UsageError
from mode_ray.expert import Expert
from mode_ray.expert_data import TrainingSet
from mode_ray.storage import Location
from mode_ray.train import worker
from mode_ray.train.budget import SEED, Trial
from mode_ray.train.model import CONFIG_FILE, WEIGHTS_FILE, load_clip
from mode_ray.train.run import planned_trials
from mode_ray.train.scheduler import TrialEnd, TrialQueue, fit_trial, initial_statuses, read_status, run_trials
from mode_ray.train.trial import ERROR_FILE, METRICS_FILE, STATE_FILE, TrialJob, read_metrics, read_progress

BATCH = 8
SEED_TRIAL = Trial(name=SEED, members=TrainingSet(kind="all"), samples=4 * BATCH, last_progress=0.5)
EXPERT_TRIAL = Trial(
    name="n2/01",
    members=TrainingSet(kind="expert", experts=2, expert=1),
    samples=4 * BATCH,
    first_progress=0.5,
    parent=SEED,
)
DENSE_TRIAL = Trial(name="dense", members=TrainingSet(kind="all", seed=1), samples=8 * BATCH)


def weights(folder: Location) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = safetensors.torch.load((folder / WEIGHTS_FILE).read_bytes())
    return tensors


def spoil_images(data_folder: Path) -> None:
    """Make every image of both shards undecodable, at its place and size."""
    tar = data_folder / "a.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"\0\0\0\0"))
    table = pq.read_table(data_folder / "b.parquet")
    images = [image.replace(b"\x89PNG", b"\0\0\0\0") for image in table["image"].to_pylist()]
    pq.write_table(table.set_column(0, "image", [images]), data_folder / "b.parquet", row_group_size=12)


class TestOneTrial:
    def test_it_leaves_an_expert_folder_metrics_and_progress(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(DENSE_TRIAL)
        assert fit_trial(job) == TrialEnd()
        assert len(Expert(job.folder, "cpu").encode_texts(["a red square"])[0]) == 16
        metrics = read_metrics(job.folder)
        assert (metrics["pairs"], metrics["samples"], metrics["samples_seen"]) == (48, 8 * BATCH, 8 * BATCH)
        assert [point["samples"] for point in metrics["history"]] == [16, 32, 48, 64]
        assert (metrics["bad_images"], metrics["first_bad_image"]) == (0, "")
        progress = read_progress(job.folder)
        assert progress is not None
        assert progress == metrics["history"][-1]
        assert not (job.folder / ERROR_FILE).exists()

    def test_only_the_seed_leaves_its_optimizer(self, make_job: Callable[..., TrialJob]) -> None:
        for trial in (SEED_TRIAL, DENSE_TRIAL):
            fit_trial(make_job(trial))
        assert (make_job(SEED_TRIAL).folder / STATE_FILE).exists()
        assert not (make_job(DENSE_TRIAL).folder / STATE_FILE).exists()

    def test_the_same_trial_gives_the_same_weights(self, make_job: Callable[..., TrialJob]) -> None:
        fit_trial(make_job(DENSE_TRIAL))
        first = weights(make_job(DENSE_TRIAL).folder)
        make_job(DENSE_TRIAL).folder.delete()
        fit_trial(make_job(DENSE_TRIAL))
        second = weights(make_job(DENSE_TRIAL).folder)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_nothing_has_been_trained_before_the_first_point(self, tmp_path: Path) -> None:
        assert read_progress(Location.parse(str(tmp_path))) is None


class TestAnExpert:
    def test_it_goes_on_from_the_seeds_weights_and_optimizer(
        self, make_job: Callable[..., TrialJob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fit_trial(make_job(SEED_TRIAL))
        seed_state = torch.load((make_job(SEED_TRIAL).folder / STATE_FILE).path, weights_only=True)
        begun: dict[str, Any] = {}
        run = worker.TrainLoop.run

        def watched(self: worker.TrainLoop, *arguments: Any) -> None:  # noqa: ANN401
            snapshot = self.snapshot()
            begun["weights"] = snapshot.weights
            begun["optimizer"] = torch.load(io.BytesIO(snapshot.state), weights_only=True)["optimizer"]["state"]
            begun["samples"] = self.state.samples_seen
            run(self, *arguments)

        monkeypatch.setattr(worker.TrainLoop, "run", watched)
        assert fit_trial(make_job(EXPERT_TRIAL)) == TrialEnd()
        seed_weights = weights(make_job(SEED_TRIAL).folder)
        assert all(torch.equal(begun["weights"][name], seed_weights[name]) for name in seed_weights)
        moments, expected = begun["optimizer"], seed_state["optimizer"]["state"]
        assert moments.keys() == expected.keys() == seed_weights.keys()
        assert all(torch.equal(moments[name]["exp_avg"], expected[name]["exp_avg"]) for name in expected)
        assert {int(moment["step"]) for moment in moments.values()} == {4}
        assert begun["samples"] == 0
        metrics = read_metrics(make_job(EXPERT_TRIAL).folder)
        assert metrics["pairs"] == 24
        assert metrics["samples_seen"] == 4 * BATCH

    def test_its_rate_goes_on_where_the_seeds_stopped(self, make_job: Callable[..., TrialJob]) -> None:
        every_step = {"placement": {"log_interval_steps": 1}}
        fit_trial(make_job(SEED_TRIAL, **every_step))
        fit_trial(make_job(EXPERT_TRIAL, **every_step))
        dense = make_job(DENSE_TRIAL, **every_step)
        fit_trial(dense)
        rates = [
            [point["learning_rate"] for point in read_metrics(dense.experts / name)["history"]]
            for name in (SEED, "n2/01", "dense")
        ]
        assert rates[0] + rates[1] == pytest.approx(rates[2])

    def test_without_its_seed_it_fails_with_the_file_that_is_missing(self, make_job: Callable[..., TrialJob]) -> None:
        end = fit_trial(make_job(EXPERT_TRIAL))
        assert end.reason is not None
        assert end.reason.endswith("or the folder is no model")
        assert "seed/open_clip_config.json: missing" in end.reason
        assert not end.again


class TestCheckpoints:
    def test_a_run_that_was_cut_off_ends_with_the_weights_of_one_that_was_not(
        self, make_job: Callable[..., TrialJob], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        placement = {"workers_per_run": 0, "checkpoint_interval_seconds": 1e-9}
        whole = make_job(DENSE_TRIAL, placement=placement)
        fit_trial(whole)
        expected = weights(whole.folder)
        whole.folder.delete()

        kept = tmp_path / "kept"

        def keep_then_die(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint | None = None) -> None:
            if metrics["samples"] == 3 * BATCH and checkpoint is not None:
                checkpoint.to_directory(kept)
                raise ConnectionError("machine lost")

        monkeypatch.setattr(ray.train, "report", keep_then_die)
        with pytest.raises(ConnectionError, match="machine lost"):
            fit_trial(make_job(DENSE_TRIAL, placement=placement))
        monkeypatch.undo()
        assert not (whole.folder / CONFIG_FILE).exists()
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(kept))
        fit_trial(make_job(DENSE_TRIAL, placement=placement))
        again = weights(whole.folder)
        assert all(torch.equal(again[name], expected[name]) for name in expected)
        metrics = read_metrics(whole.folder)
        assert metrics["samples_seen"] == 8 * BATCH
        assert [point["samples"] for point in metrics["history"]][:1] == [2 * BATCH]


class TestBrokenData:
    @pytest.mark.parametrize("loader_workers", [0, 1])
    def test_the_launch_ends_with_one_clean_line(
        self, make_job: Callable[..., TrialJob], data_folder: Path, loader_workers: int
    ) -> None:
        job = make_job(DENSE_TRIAL, placement={"workers_per_run": 0, "loader_workers": loader_workers})
        spoil_images(data_folder)
        end = fit_trial(job)
        assert end.reason is not None
        assert end.reason.startswith("no image of a whole batch can be decoded; the first: ")
        assert "\n" not in end.reason
        assert not end.again
        assert not (job.folder / CONFIG_FILE).exists()

    def test_restarted_workers_do_not_try_again(
        self, make_job: Callable[..., TrialJob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = make_job(DENSE_TRIAL)
        (job.folder / ERROR_FILE).write_text("a.tar: sample 3: damaged")
        monkeypatch.setattr(worker, "_train", lambda *_: pytest.fail("trained"))
        worker.train_worker({"job": job})

    def test_a_new_launch_forgets_the_error_of_the_last(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(DENSE_TRIAL)
        (job.folder / ERROR_FILE).write_text("a.tar: sample 3: damaged")
        assert fit_trial(job) == TrialEnd()
        assert not (job.folder / ERROR_FILE).exists()
        load_clip(job.folder)

    @pytest.mark.parametrize(("ranks", "raised"), [(1, False), (2, True)])
    def test_only_where_other_ranks_wait_the_error_goes_on_to_ray(
        self, make_job: Callable[..., TrialJob], monkeypatch: pytest.MonkeyPatch, ranks: int, raised: bool
    ) -> None:
        class Context:
            def get_world_rank(self) -> int:
                return 0

            def get_world_size(self) -> int:
                return ranks

        def refuse(*_: object) -> None:
            raise UsageError("train.batch_size=9 cannot be dealt evenly to 2 workers")

        monkeypatch.setattr(ray.train, "get_context", Context)
        monkeypatch.setattr(worker, "_train", refuse)
        job = make_job(DENSE_TRIAL)
        if raised:
            with pytest.raises(UsageError):
                worker.train_worker({"job": job})
        else:
            worker.train_worker({"job": job})
        assert (job.folder / ERROR_FILE).read_text() == "train.batch_size=9 cannot be dealt evenly to 2 workers"


def test_the_stage_plans_the_widest_expert_first_from_the_assigned_pairs(
    make_config: Callable[..., RunConfig], run_folder: Location, shards: list[Shard]
) -> None:
    clustering = Clustering.load(run_folder / "clusters")
    trials, pairs_n = planned_trials(make_config(), clustering, run_folder / "assignments", shards)
    assert pairs_n.tolist() == [24, 24]
    # Both experts hold two centers of equal mass; the second one's rows lie farther from them.
    assert [trial.name for trial in trials] == ["seed", "dense", "n2/01", "n2/00"]


def test_on_a_real_ray_broken_data_costs_one_launch_and_no_retry(
    ray_session: None, make_job: Callable[..., TrialJob], data_folder: Path
) -> None:
    """The one test here that pays for Ray Train's controller and worker processes (about 20 s)."""
    placement = {"workers_per_run": 1, "cpus_per_worker": 1.0, "max_failures": 3, "max_launches": 3}
    job = make_job(DENSE_TRIAL, placement=placement)
    spoil_images(data_folder)
    queue = TrialQueue([DENSE_TRIAL], initial_statuses([DENSE_TRIAL], job.experts), concurrent=1, max_launches=3)
    run_trials({"dense": job}, queue, job.config.train.placement, lambda _: None)
    status = read_status(job.folder)
    assert status is not None
    assert (status.state, status.launches) == ("failed", 1)
    assert status.reason is not None
    assert status.reason.startswith("no image of a whole batch can be decoded; the first: ")
    assert not (job.folder / METRICS_FILE).exists()
    assert json.loads((job.folder / "status.json").read_text())["reason"] == status.reason
