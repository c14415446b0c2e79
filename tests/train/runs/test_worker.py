"""One trial from start to its expert folder, through Ray Train, in this process."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from trials import BATCH, DENSE_TRIAL, EXPERT_TRIAL, SEED_TRIAL, assert_same_weights, weights

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.models.architecture import CONFIG_FILE
from mode_ray.models.encode import Expert
from mode_ray.run_directory import ERROR_FILE, STATE_FILE
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.plan import SEED
from mode_ray.train.runs.checkpoint_folders import checkpoint_name, whole_checkpoints
from mode_ray.train.runs.checkpoints import read_checkpoint
from mode_ray.train.runs.launcher import TrialEnd, checkpoints_folder, fit_trial
from mode_ray.train.runs.reporter import Reporter
from mode_ray.train.runs.trial import TrialJob, read_metrics, read_progress
from mode_ray.train.stage import planned_trials
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import TrainLoop


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
        assert progress == metrics["history"][-1] | {"workers": 1.0}
        assert metrics["ledger"] > 0
        assert metrics["skipped"] == []
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
    def test_it_continues_from_the_seeds_weights_and_optimizer(
        self, make_job: Callable[..., TrialJob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fit_trial(make_job(SEED_TRIAL))
        seed_state = torch.load((make_job(SEED_TRIAL).folder / STATE_FILE).path, weights_only=True)
        begun: dict[str, Any] = {}
        run = TrainLoop.run

        def watched(self: TrainLoop, *arguments: Any) -> None:  # noqa: ANN401
            begun["snapshot"] = self.gather_snapshot()
            begun["samples"] = self.state.samples_seen
            run(self, *arguments)

        monkeypatch.setattr(TrainLoop, "run", watched)
        assert fit_trial(make_job(EXPERT_TRIAL)) == TrialEnd()
        assert_same_weights(begun["snapshot"].weights, weights(make_job(SEED_TRIAL).folder))
        moments = torch.load(io.BytesIO(begun["snapshot"].state), weights_only=True)["optimizer"]["state"]
        seed_moments = seed_state["optimizer"]["state"]
        assert moments.keys() == seed_moments.keys()
        assert all(torch.equal(moments[key]["exp_avg"], seed_moments[key]["exp_avg"]) for key in moments)
        assert {int(moment["step"]) for moment in moments.values()} == {4}
        assert begun["samples"] == 0
        metrics = read_metrics(make_job(EXPERT_TRIAL).folder)
        assert metrics["pairs"] == 24
        assert metrics["samples_seen"] == 4 * BATCH

    def test_its_rate_continues_where_the_seeds_stopped(self, make_job: Callable[..., TrialJob]) -> None:
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
        assert end.reason.endswith("or this is not a model")
        assert "seed/open_clip_config.json: missing" in end.reason
        assert not end.again


def checkpoints_of(job: TrialJob) -> list[Location]:
    return whole_checkpoints(checkpoints_folder(job))


class TestCheckpoints:
    EVERY_STEP: ClassVar = {"workers_per_run": 0, "checkpoint_interval_seconds": 1e-9}

    def cut_off(self, job: TrialJob, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the trial die after so many samples, its checkpoints written."""
        after_step = Reporter.after_step_on_all_ranks

        def die(self: Reporter) -> None:
            after_step(self)
            self.wait_on_all_ranks()
            if self._loop.state.samples_seen == samples:
                raise ConnectionError("machine lost")

        with monkeypatch.context() as patch:
            patch.setattr(Reporter, "after_step_on_all_ranks", die)
            with pytest.raises(ConnectionError, match="machine lost"):
                fit_trial(job)

    def test_a_run_that_was_cut_off_ends_with_weights_and_ledger_of_one_that_was_not(
        self, make_job: Callable[..., TrialJob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = make_job(DENSE_TRIAL, placement=self.EVERY_STEP)
        fit_trial(job)
        expected, ledger = weights(job.folder), read_metrics(job.folder)["ledger"]
        job.folder.delete()
        self.cut_off(job, 3 * BATCH, monkeypatch)
        assert not (job.folder / CONFIG_FILE).exists()
        assert [one.name for one in checkpoints_of(job)] == [checkpoint_name(3 * BATCH)]
        began: list[int] = []
        run = TrainLoop.run

        def noting(self: TrainLoop, *arguments: Any) -> None:  # noqa: ANN401
            began.append(self.state.samples_seen)
            run(self, *arguments)

        monkeypatch.setattr(TrainLoop, "run", noting)
        assert fit_trial(job) == TrialEnd()
        assert began == [3 * BATCH]
        assert_same_weights(weights(job.folder), expected)
        metrics = read_metrics(job.folder)
        assert (metrics["samples_seen"], metrics["ledger"]) == (8 * BATCH, ledger)
        assert [point["samples"] for point in metrics["history"]][:1] == [2 * BATCH]

    def test_one_that_was_not_written_to_its_end_is_passed_over(
        self, make_job: Callable[..., TrialJob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = make_job(DENSE_TRIAL, placement=self.EVERY_STEP)
        self.cut_off(job, 3 * BATCH, monkeypatch)
        (newest,) = checkpoints_of(job)
        ((newest.parent / checkpoint_name(5 * BATCH)) / "model.safetensors").write_bytes(b"cut off")
        assert fit_trial(job) == TrialEnd()

    def test_weights_optimizer_cursor_and_ledger_are_of_one_moment(
        self, make_job: Callable[..., TrialJob], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = make_job(DENSE_TRIAL, placement=self.EVERY_STEP)
        ledgers: dict[int, int] = {}
        step = TrainLoop.step

        def note(self: TrainLoop, batch: TrainBatch) -> Any:  # noqa: ANN401
            result = step(self, batch)
            ledgers[self.state.samples_seen] = self.state.ledger
            return result

        monkeypatch.setattr(TrainLoop, "step", note)
        self.cut_off(job, 4 * BATCH, monkeypatch)
        (newest,) = checkpoints_of(job)
        stored = torch.load(io.BytesIO(read_checkpoint(newest).state), weights_only=True)
        assert stored["loop"]["samples_seen"] == 4 * BATCH
        assert stored["loop"]["ledger"] == ledgers[4 * BATCH]
        assert {int(moment["step"]) for moment in stored["optimizer"]["state"].values()} == {4}

    def test_one_that_cannot_be_written_ends_the_launch_with_its_reason(
        self, make_job: Callable[..., TrialJob]
    ) -> None:
        job = make_job(DENSE_TRIAL, placement=self.EVERY_STEP)
        (checkpoints_folder(job) / checkpoint_name(BATCH)).write_text("a file where a folder should be")
        end = fit_trial(job)
        assert end.reason is not None
        assert checkpoint_name(BATCH) in end.reason
        assert not (job.folder / CONFIG_FILE).exists()


def test_the_stage_plans_the_widest_expert_first_from_the_assigned_pairs(
    make_config: Callable[..., RunConfig], run_folder: Location, work_units: list[WorkUnit]
) -> None:
    clustering = Clustering.load(run_folder / "clusters")
    trials, pairs_n = planned_trials(Run(make_config(), work_units), clustering)
    assert pairs_n.tolist() == [24, 24]
    # Both experts hold two centers of equal mass; the second one's rows lie farther from them.
    assert [trial.name for trial in trials] == ["seed", "dense", "n2/01", "n2/00"]
