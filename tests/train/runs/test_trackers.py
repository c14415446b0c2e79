"""What the trackers record: event files read back, and stand-ins for packages that are not installed."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location
from mode_ray.train.runs.trackers import TensorBoardTracker, Trackers, check_trackers, open_trackers


def point(samples: int, loss: float) -> dict[str, float]:
    return {"samples": float(samples), "loss": loss, "learning_rate": 1e-3}


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


class TestTensorBoard:
    def test_every_number_of_a_point_is_a_curve_over_samples(self, tmp_path: Path) -> None:
        tracker = TensorBoardTracker(Location.parse(str(tmp_path / "tensorboard")), 0)
        for samples, loss in ((8, 2.0), (16, 1.5)):
            tracker.log(point(samples, loss))
        tracker.close(failed=False)
        assert scalars(tmp_path / "tensorboard", "loss") == [(8, 2.0), (16, 1.5)]
        assert [step for step, _ in scalars(tmp_path / "tensorboard", "learning_rate")] == [8, 16]

    def test_a_resumed_run_hides_the_points_that_it_rolled_back(self, tmp_path: Path) -> None:
        folder = Location.parse(str(tmp_path / "tensorboard"))
        first = TensorBoardTracker(folder, 0)
        for samples in (8, 16, 24):
            first.log(point(samples, 9.0))
        first.close(failed=False)
        second = TensorBoardTracker(folder, 16)
        second.log(point(24, 1.0))
        second.close(failed=False)
        assert scalars(tmp_path / "tensorboard", "loss") == [(8, 9.0), (16, 9.0), (24, 1.0)]

    def test_a_remote_folder_gets_copies_at_every_flush(self, bucket: str, tmp_path: Path) -> None:
        folder = Location.parse(f"{bucket}/run/experts/seed/tensorboard")
        tracker = TensorBoardTracker(folder, 0)
        tracker.log(point(8, 2.0))
        tracker.flush()
        assert download(folder, tmp_path / "first") == [(8, 2.0)]
        tracker.log(point(16, 1.5))
        tracker.close(failed=False)
        assert download(folder, tmp_path / "second") == [(8, 2.0), (16, 1.5)]

    def test_a_flush_after_the_end_changes_nothing(self, bucket: str, tmp_path: Path) -> None:
        folder = Location.parse(f"{bucket}/run/experts/seed/tensorboard")
        tracker = TensorBoardTracker(folder, 0)
        tracker.log(point(8, 2.0))
        tracker.close(failed=True)
        tracker.flush()
        assert download(folder, tmp_path / "copy") == [(8, 2.0)]


def download(folder: Location, to: Path) -> list[tuple[int, float]]:
    to.mkdir()
    for file in folder.files():
        (to / file.name).write_bytes(file.read_bytes())
    return scalars(to, "loss")


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.preempting = False
        self.exit_code: int | None = None
        self.__spec__ = SimpleNamespace()  # type: ignore[assignment]

    def init(self, **fields: Any) -> "FakeWandb":  # noqa: ANN401
        self.inits.append(fields)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "samples")

    def log(self, data: dict[str, float]) -> None:
        self.logged.append(data)

    def mark_preempting(self) -> None:
        self.preempting = True

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeMlflow(ModuleType):
    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, dict[str, Any]] = {}
        self.__spec__ = SimpleNamespace()  # type: ignore[assignment]

    def set_experiment(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id=f"id of {name}")

    def MlflowClient(self) -> "FakeMlflow":  # noqa: N802
        return self

    def search_runs(self, experiments: list[str], query: str, max_results: int) -> list[SimpleNamespace]:
        assert max_results == 1
        assert experiments == ["id of my project"]
        return [self._run(key) for key in self.runs if query == f"tags.`mode_ray.run` = '{key}'"]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        assert experiment == "id of my project"
        self.runs[tags["mode_ray.run"]] = {"name": run_name, "metrics": [], "params": {}, "status": "RUNNING"}
        return self._run(tags["mode_ray.run"])

    def _run(self, key: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id=key, status=self.runs[key]["status"]))

    def log_param(self, run: str, field: str, value: object) -> None:
        self.runs[run]["params"][field] = value

    def log_metric(self, run: str, name: str, value: float, step: int) -> None:
        self.runs[run]["metrics"].append((name, value, step))

    def update_run(self, run: str, status: str) -> None:
        self.runs[run]["status"] = status

    def set_terminated(self, run: str, status: str) -> None:
        self.runs[run]["status"] = status


class TestAskedFor:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Location:
        return Location.parse(str(tmp_path / "run/experts/n2/00"))

    def test_wandb_gets_every_point_and_a_restart_resumes_its_run(
        self, make_config: Callable[..., RunConfig], folder: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wandb = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        train = make_config(placement={"trackers": ["wandb"], "tracker_project": "my project"}).train
        for samples in (8, 16):
            trackers = open_trackers(folder, "n2/00", train, samples_seen=samples - 8)
            trackers.log(point(samples, 2.0))
            trackers.close(failed=False)
        assert wandb.logged == [point(8, 2.0), point(16, 2.0)]
        assert wandb.exit_code == 0
        first, second = wandb.inits
        assert (first["project"], first["name"], first["resume"]) == ("my project", "n2/00", "allow")
        assert first["id"] == second["id"]
        assert first["config"]["optimizer.learning_rate"] == 3e-3
        assert (Path(folder.path) / "tensorboard").is_dir()

    def test_mlflow_gets_every_number_and_a_restart_resumes_its_run(
        self, make_config: Callable[..., RunConfig], folder: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mlflow = FakeMlflow()
        monkeypatch.setitem(sys.modules, "mlflow", mlflow)
        train = make_config(placement={"trackers": ["mlflow"], "tracker_project": "my project"}).train
        for samples in (8, 16):
            trackers = open_trackers(folder, "n2/00", train, samples_seen=samples - 8)
            trackers.log(point(samples, 2.0))
            trackers.close(failed=False)
        (run,) = mlflow.runs.values()
        assert run["name"] == "n2/00"
        assert run["metrics"] == [
            (name, value, step) for step in (8, 16) for name, value in (("loss", 2.0), ("learning_rate", 1e-3))
        ]
        assert run["params"]["batch_size"] == 8
        assert run["status"] == "FINISHED"

    def test_a_failed_run_is_marked_as_failed(
        self, make_config: Callable[..., RunConfig], folder: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wandb, mlflow = FakeWandb(), FakeMlflow()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        monkeypatch.setitem(sys.modules, "mlflow", mlflow)
        placement = {"trackers": ["wandb", "mlflow"], "tracker_project": "my project"}
        open_trackers(folder, "n2/00", make_config(placement=placement).train, 0).close(failed=True)
        assert wandb.exit_code == 1
        assert [run["status"] for run in mlflow.runs.values()] == ["FAILED"]

    def test_a_preempted_run_is_marked_and_runs_again_when_it_is_resumed(
        self, make_config: Callable[..., RunConfig], folder: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wandb, mlflow = FakeWandb(), FakeMlflow()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        monkeypatch.setitem(sys.modules, "mlflow", mlflow)
        placement = {"trackers": ["wandb", "mlflow"], "tracker_project": "my project"}
        train = make_config(placement=placement).train
        open_trackers(folder, "n2/00", train, 0).preempted()
        assert wandb.preempting
        assert [run["status"] for run in mlflow.runs.values()] == ["KILLED"]
        open_trackers(folder, "n2/00", train, 8)
        assert [run["status"] for run in mlflow.runs.values()] == ["RUNNING"]

    def test_a_tracker_that_cannot_be_reached_is_a_warning_and_the_others_continue(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Unreachable:
            def refuse(self, *_: object, **__: object) -> None:
                raise ConnectionError("no route to the server")

            log = flush = preempted = close = refuse

        trackers = Trackers([Unreachable(), TensorBoardTracker(Location.parse(str(tmp_path)), 0)])
        trackers.log(point(8, 2.0))
        trackers.flush()
        trackers.close(failed=False)
        assert scalars(tmp_path, "loss") == [(8, 2.0)]
        assert caplog.text.count("ConnectionError: no route to the server") == 3
        assert "Unreachable: could not log" in caplog.text

    def test_two_trials_are_two_runs(
        self, make_config: Callable[..., RunConfig], folder: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mlflow = FakeMlflow()
        monkeypatch.setitem(sys.modules, "mlflow", mlflow)
        train = make_config(placement={"trackers": ["mlflow"], "tracker_project": "my project"}).train
        for name in ("00", "01"):
            open_trackers(folder.parent / name, f"n2/{name}", train, 0).close(failed=False)
        assert len(mlflow.runs) == 2

    @pytest.mark.parametrize("name", ["wandb", "mlflow"])
    def test_one_that_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(UsageError, match=f"trackers: {name} is not installed; pip install {name}"):
            check_trackers([name])
