"""Trials that end badly or leave something out: no finite loss, broken data; once on a real Ray."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from trials import BATCH, DENSE_TRIAL, assert_same_weights, weights

from mode_ray.errors import UsageError
from mode_ray.models.architecture import CONFIG_FILE
from mode_ray.models.clip import load_clip
from mode_ray.run_directory import ERROR_FILE, METRICS_FILE
from mode_ray.train.runs.launcher import TrialEnd, checkpoints_folder, fit_trial
from mode_ray.train.runs.queue import TrialQueue
from mode_ray.train.runs.scheduler import run_trials
from mode_ray.train.runs.status import initial_statuses, read_status
from mode_ray.train.runs.trial import TrialJob, read_metrics
from mode_ray.train.runs.worker import train_on_all_ranks
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.rank import ONLY_RANK, Rank


def spoil_images(data_folder: Path) -> None:
    """Make every image of both shards undecodable, at its place and size."""
    tar = data_folder / "a.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"\0\0\0\0"))
    table = pq.read_table(data_folder / "b.parquet")
    images = [image.replace(b"\x89PNG", b"\0\0\0\0") for image in table["image"].to_pylist()]
    pq.write_table(table.set_column(0, "image", [images]), data_folder / "b.parquet", row_group_size=12)


class TestABatchWithoutAFiniteLoss:
    POISONED = 3 * BATCH

    @pytest.fixture
    def poisoned(self, monkeypatch: pytest.MonkeyPatch) -> set[int]:
        """Positions of the batches whose images are no numbers."""
        positions = {self.POISONED}
        step = TrainLoop.step

        def poison(self: TrainLoop, batch: TrainBatch) -> Any:  # noqa: ANN401
            if self.state.samples_seen in positions:
                batch = dataclasses.replace(batch, images=batch.images * float("nan"))
            return step(self, batch)

        monkeypatch.setattr(TrainLoop, "step", poison)
        return positions

    def placement(self, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        return {"workers_per_run": 0, "checkpoint_interval_seconds": 1e6, **fields}

    @pytest.mark.usefixtures("poisoned")
    def test_stop_ends_the_run_and_says_why(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(DENSE_TRIAL, placement=self.placement(nonfinite="stop"))
        end = fit_trial(job)
        assert end.reason is not None
        assert end.reason.startswith(f"dense: the loss is nan after {self.POISONED} samples")
        assert (job.folder / ERROR_FILE).read_text() == end.reason
        assert not end.again
        assert not (job.folder / CONFIG_FILE).exists()

    @pytest.mark.parametrize("interval_seconds", [1e6, 1e-9])
    def test_rollback_gives_the_weights_of_a_run_that_never_had_that_batch(
        self,
        make_job: Callable[..., TrialJob],
        poisoned: set[int],
        monkeypatch: pytest.MonkeyPatch,
        interval_seconds: float,
    ) -> None:
        placement = self.placement(nonfinite="rollback", checkpoint_interval_seconds=interval_seconds)
        job = make_job(DENSE_TRIAL, placement=placement)
        assert fit_trial(job) == TrialEnd()
        rolled_back, metrics = weights(job.folder), read_metrics(job.folder)
        assert metrics["skipped"] == [self.POISONED]
        assert metrics["samples_seen"] == 8 * BATCH
        assert all(bool(torch.isfinite(tensor).all()) for tensor in rolled_back.values())
        job.folder.delete()

        poisoned.clear()
        run = TrainLoop.run

        def without_it(self: TrainLoop, *arguments: Any) -> None:  # noqa: ANN401
            self.skip(TestABatchWithoutAFiniteLoss.POISONED)
            run(self, *arguments)

        monkeypatch.setattr(TrainLoop, "run", without_it)
        assert fit_trial(job) == TrialEnd()
        assert_same_weights(weights(job.folder), rolled_back)
        assert read_metrics(job.folder)["ledger"] == metrics["ledger"]

    def test_more_of_them_than_rollbacks_end_the_run(
        self, make_job: Callable[..., TrialJob], poisoned: set[int]
    ) -> None:
        poisoned |= {4 * BATCH, 6 * BATCH}
        job = make_job(DENSE_TRIAL, placement=self.placement(nonfinite="rollback", max_rollbacks=2))
        end = fit_trial(job)
        assert end.reason is not None
        assert f"after {6 * BATCH} samples" in end.reason
        assert "max_rollbacks=2 batches were skipped before" in end.reason
        allowed = make_job(DENSE_TRIAL, placement=self.placement(nonfinite="rollback", max_rollbacks=3))
        assert fit_trial(allowed) == TrialEnd()
        assert read_metrics(allowed.folder)["skipped"] == sorted(poisoned)


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

    def test_restarted_workers_do_not_try_again(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(DENSE_TRIAL)
        (job.folder / ERROR_FILE).write_text("a.tar: sample 3: damaged")
        train_on_all_ranks(job, checkpoints_folder(job), ONLY_RANK)
        assert [file.name for file in job.folder.files(recursive=True)] == [ERROR_FILE]

    def test_a_new_launch_forgets_the_error_of_the_last(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(DENSE_TRIAL)
        (job.folder / ERROR_FILE).write_text("a.tar: sample 3: damaged")
        assert fit_trial(job) == TrialEnd()
        assert not (job.folder / ERROR_FILE).exists()
        load_clip(job.folder)

    @pytest.mark.parametrize(("ranks", "raised"), [(1, False), (2, True)])
    def test_the_error_is_raised_to_ray_only_if_other_ranks_wait(
        self, make_job: Callable[..., TrialJob], ranks: int, raised: bool
    ) -> None:
        job = make_job(DENSE_TRIAL, model={"architecture": "/nowhere"})
        with pytest.raises(UsageError) if raised else nullcontext():
            train_on_all_ranks(job, checkpoints_folder(job), Rank(0, ranks))
        assert (job.folder / ERROR_FILE).read_text().startswith("train.model.architecture: /nowhere: ")


@pytest.mark.drill
def test_on_a_real_ray_broken_data_costs_one_launch_and_no_retry(
    ray_session: None, make_job: Callable[..., TrialJob], data_folder: Path
) -> None:
    """The one test here that pays for Ray Train's controller and worker processes (about 20 s)."""
    placement = {"workers_per_run": 1, "cpus_per_worker": 1.0, "max_failures": 3, "max_launches": 3}
    job = make_job(DENSE_TRIAL, placement=placement)
    spoil_images(data_folder)
    queue = TrialQueue([DENSE_TRIAL], initial_statuses([DENSE_TRIAL], job.experts), concurrent=1, max_launches=3)
    run_trials({"dense": job}, queue, lambda _: None)
    status = read_status(job.folder)
    assert status is not None
    assert (status.state, status.launches) == ("failed", 1)
    assert status.reason is not None
    assert status.reason.startswith("no image of a whole batch can be decoded; the first: ")
    assert not (job.folder / METRICS_FILE).exists()
    assert json.loads((job.folder / "status.json").read_text())["reason"] == status.reason
