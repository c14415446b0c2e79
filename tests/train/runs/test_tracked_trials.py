"""Trials with trackers: what is stored with every checkpoint and however the trial ends."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_trackers import FakeMlflow, download
from test_worker_failures import spoil_images
from trials import BATCH, DENSE_TRIAL

from mode_ray.config.train import ModelConfig
from mode_ray.run_directory import TENSORBOARD_FOLDER
from mode_ray.storage import Location
from mode_ray.train.runs.launcher import TrialEnd, fit_trial
from mode_ray.train.runs.trackers import Trackers, open_trackers
from mode_ray.train.runs.trial import TrialJob

MakeJob = Callable[..., TrialJob]
LOGGED = [samples * BATCH for samples in (2, 4, 6, 8)]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    """Stands in for the package, which is not installed here."""
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def tracked(make_job: MakeJob, **placement: object) -> TrialJob:
    """The dense trial with MLflow; its runs are in the fake's experiment."""
    fields = {"workers_per_run": 0, "trackers": ["mlflow"], "tracker_project": "my project", **placement}
    return make_job(DENSE_TRIAL, placement=fields)


def statuses(mlflow: FakeMlflow) -> list[str]:
    return [run["status"] for run in mlflow.runs.values()]


class TestHowATrialEnds:
    def test_a_trained_one_is_finished(self, make_job: MakeJob, mlflow: FakeMlflow) -> None:
        assert fit_trial(tracked(make_job)) == TrialEnd()
        assert statuses(mlflow) == ["FINISHED"]

    def test_one_with_broken_data_is_failed(self, make_job: MakeJob, mlflow: FakeMlflow, data_folder: Path) -> None:
        spoil_images(data_folder)
        end = fit_trial(tracked(make_job))
        assert end.reason is not None
        assert statuses(mlflow) == ["FAILED"]

    def test_one_whose_model_cannot_be_written_is_failed(self, make_job: MakeJob, mlflow: FakeMlflow) -> None:
        job = tracked(make_job)
        (Path(job.folder.path) / "open_clip_model.safetensors").mkdir(parents=True)
        assert fit_trial(job) != TrialEnd()
        assert statuses(mlflow) == ["FAILED"]

    def test_one_whose_worker_was_killed_is_failed(self, make_job: MakeJob, mlflow: FakeMlflow) -> None:
        """Ray kills rank 0, and with it its tracker, if another rank fails."""
        job = tracked(make_job)
        trackers = open_trackers(job.folder, job.trial.name, job.config.train, 0)
        assert statuses(mlflow) == ["RUNNING"]
        model = ModelConfig(architecture="/nowhere")  # fails before the launch opens trackers of its own
        train = job.config.train.model_copy(update={"model": model})
        assert fit_trial(replace(job, config=job.config.model_copy(update={"train": train}))) != TrialEnd()
        assert statuses(mlflow) == ["FAILED"]
        trackers.close(failed=False)
        assert fit_trial(replace(job, config=job.config.model_copy(update={"train": train}))) != TrialEnd()
        assert statuses(mlflow) == ["FINISHED"], "only a run that is still open is ended"


class TestTensorBoardOfARemoteRun:
    @pytest.fixture
    def remote_job(self, make_job: MakeJob, bucket: str) -> Callable[..., TrialJob]:
        """Makes the dense trial with its folder on S3; its data are local."""

        def make(**placement: object) -> TrialJob:
            job = make_job(DENSE_TRIAL, placement={"workers_per_run": 0, **placement})
            experts = Location.parse(f"{bucket}/run/experts")
            for file in job.experts.files():
                file.copy_to(experts / file.name)
            return replace(job, experts=experts)

        return make

    def test_all_points_are_there_after_the_end(self, remote_job: Callable[..., TrialJob], tmp_path: Path) -> None:
        job = remote_job()
        assert fit_trial(job) == TrialEnd()
        points = download(job.folder / TENSORBOARD_FOLDER, tmp_path / "copy")
        assert [samples for samples, _ in points] == LOGGED

    def test_points_are_there_with_every_checkpoint(
        self, remote_job: Callable[..., TrialJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is closed here, as when the process is killed."""
        monkeypatch.setattr(Trackers, "close", lambda *_, **__: None)
        job = remote_job(checkpoint_interval_seconds=1e-9)
        assert fit_trial(job) == TrialEnd()
        points = download(job.folder / TENSORBOARD_FOLDER, tmp_path / "copy")
        assert len(points) >= 1

    def test_the_files_are_there_after_a_failure(self, remote_job: Callable[..., TrialJob]) -> None:
        job = remote_job(nonfinite="stop")
        config = job.config.model_copy(
            update={
                "train": job.config.train.model_copy(
                    update={"optimizer": job.config.train.optimizer.model_copy(update={"learning_rate": 1e30})}
                )
            }
        )
        end = fit_trial(replace(job, config=config))
        assert end.reason is not None
        assert "the loss is" in end.reason or "the norm" in end.reason
        assert (job.folder / TENSORBOARD_FOLDER).files()
