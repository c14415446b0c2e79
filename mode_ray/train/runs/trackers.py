"""Trackers of a run's logged points: TensorBoard always, W&B and MLflow on request.

torch and the trackers' packages are imported when they are used: a driver that only checks the config stays small.
"""

import hashlib
import importlib
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from mode_ray.config.train import TrainConfig
from mode_ray.errors import UsageError
from mode_ray.run_directory import TENSORBOARD_FOLDER
from mode_ray.storage import Location

_STEP = "samples"
_MLFLOW_TAG = "mode_ray.run"
_ID_BYTES = 8
_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Records the points of one run; rank 0 has one of each kind."""

    def log(self, point: Mapping[str, float]) -> None:
        """Record a point; its `samples` is the step."""

    def flush(self) -> None:
        """Store everything that was recorded so far."""

    def preempted(self) -> None:
        """Store everything, and mark the run as interrupted: this process may be killed without another call."""

    def close(self, *, failed: bool) -> None:
        """Store everything, and end the run as finished or failed."""


class Trackers:
    """Several trackers as one. An error of a tracker is logged as a warning, and the training continues."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, point: Mapping[str, float]) -> None:
        """Record a point; its `samples` is the step."""
        self._each("log", lambda tracker: tracker.log(point))

    def flush(self) -> None:
        """Store everything that was recorded so far."""
        self._each("flush", lambda tracker: tracker.flush())

    def preempted(self) -> None:
        """Store everything, and mark the run as interrupted."""
        self._each("mark as preempted", lambda tracker: tracker.preempted())

    def close(self, *, failed: bool) -> None:
        """Store everything, and end the run as finished or failed."""
        self._each("close", lambda tracker: tracker.close(failed=failed))

    def _each(self, what: str, do: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            try:
                do(tracker)
            except Exception:  # each package raises errors of its own
                _logger.warning("%s: could not %s", type(tracker).__name__, what, exc_info=True)


class TensorBoardTracker:
    """Event files in the trial's folder. A remote folder gets copies of local files at every flush.

    Args:
        folder: The trial's `tensorboard` folder.
        samples_seen: Samples at which the run begins or resumes; TensorBoard hides later points of earlier attempts.
    """

    def __init__(self, folder: Location, samples_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._temporary = None if folder.is_local else tempfile.TemporaryDirectory(prefix="mode-ray-tensorboard-")
        self._local = Path(folder.path if self._temporary is None else self._temporary.name)
        self._local.mkdir(parents=True, exist_ok=True)
        # A failed run is closed while its last checkpoint, and the flush after it, may still be in progress.
        self._storing = Lock()
        self._is_open = True
        self._writer: Any = SummaryWriter(str(self._local), purge_step=samples_seen + 1 if samples_seen else None)

    def log(self, point: Mapping[str, float]) -> None:
        """Add a point to the event files."""
        for name, value in point.items():
            if name != _STEP:
                self._writer.add_scalar(name, value, int(point[_STEP]))

    def flush(self) -> None:
        """Write the event files; nothing after `close`."""
        with self._storing:
            if self._is_open:
                self._store()

    def preempted(self) -> None:
        """Write the event files; TensorBoard has no run states."""
        self.flush()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - TensorBoard has no run states
        """Write and close the event files."""
        with self._storing:
            self._is_open = False
            try:
                self._store()
            finally:
                self._writer.close()
                if self._temporary is not None:
                    self._temporary.cleanup()

    def _store(self) -> None:
        self._writer.flush()
        if self._temporary is not None:
            for file in sorted(self._local.iterdir()):
                (self._folder / file.name).write_bytes(file.read_bytes())


class WandbTracker:
    """A run of Weights & Biases; a restarted worker resumes it.

    `key` is the same for every attempt.
    """

    def __init__(self, project: str, name: str, key: str, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=project, name=name, id=key, resume="allow", config=dict(config), dir=tempfile.gettempdir()
        )
        # W&B's own steps must not decrease. Ours decrease when a run resumes from a checkpoint.
        self._run.define_metric("*", step_metric=_STEP)

    def log(self, point: Mapping[str, float]) -> None:
        """Queue a point; W&B sends it in the background."""
        self._run.log(dict(point))

    def flush(self) -> None:
        """Nothing to do: W&B sends points in the background."""

    def preempted(self) -> None:
        """Mark the run as preempting; W&B shows it as preempted if no more points follow."""
        self._run.mark_preempting()

    def close(self, *, failed: bool) -> None:
        """Send all points, and end the run as finished or failed."""
        self._run.finish(exit_code=1 if failed else 0)


class MlflowTracker:
    """A run of MLflow; a restarted worker resumes it. MLflow's environment variables name the server.

    `key` is the same for every attempt.
    """

    def __init__(self, experiment: str, name: str, key: str, config: Mapping[str, Any]) -> None:
        self._client, number, run = _find_mlflow_run(experiment, key)
        if run is None:
            run = self._client.create_run(number, tags={_MLFLOW_TAG: key}, run_name=name)
            for field, value in config.items():
                self._client.log_param(run.info.run_id, field, value)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id

    def log(self, point: Mapping[str, float]) -> None:
        """Send a point."""
        for name, value in point.items():
            if name != _STEP:
                self._client.log_metric(self._run_id, name, value, step=int(point[_STEP]))

    def flush(self) -> None:
        """Nothing to do: every point is sent at once."""

    def preempted(self) -> None:
        """Mark the run as killed; a worker that resumes it marks it as running again."""
        self._client.set_terminated(self._run_id, status="KILLED")

    def close(self, *, failed: bool) -> None:
        """End the run as finished or failed."""
        self._client.set_terminated(self._run_id, status="FAILED" if failed else "FINISHED")


def _find_mlflow_run(experiment: str, key: str) -> tuple[Any, Any, Any]:
    """MLflow's client, the experiment's id, and the run with this key or None."""
    mlflow: Any = importlib.import_module("mlflow")
    client, number = mlflow.MlflowClient(), mlflow.set_experiment(experiment).experiment_id
    runs = client.search_runs([number], f"tags.`{_MLFLOW_TAG}` = '{key}'", max_results=1)
    return client, number, runs[0] if runs else None


_ON_REQUEST: dict[str, type[WandbTracker] | type[MlflowTracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers' packages are installed.

    Raises:
        UsageError: A package is not installed here.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"train.placement.trackers: {name} is not installed; pip install {name} where the workers run, "
                "or remove it from the list"
            )


def open_trackers(folder: Location, name: str, config: TrainConfig, samples_seen: int) -> Trackers:
    """The trackers of a run, for rank 0.

    Raises:
        UsageError: The package of a tracker is not installed.
    """
    placement = config.placement
    check_trackers(placement.trackers)
    shown = _flat(config.model_dump(mode="json", exclude={"placement"}))
    requested = [
        _ON_REQUEST[kind](placement.tracker_project, name, _key(folder), shown) for kind in placement.trackers
    ]
    return Trackers([TensorBoardTracker(folder / TENSORBOARD_FOLDER, samples_seen), *requested])


def end_failed_run(folder: Location, config: TrainConfig) -> None:
    """Mark a trial's MLflow run as failed if its worker was killed before it could do so.

    Ray kills rank 0 if another rank fails. W&B notices by itself that a run's process has ended; MLflow does not. An
    error is logged as a warning.
    """
    if "mlflow" not in config.placement.trackers:
        return
    try:
        client, _, run = _find_mlflow_run(config.placement.tracker_project, _key(folder))
        if run is not None and run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status="FAILED")
    except Exception:  # the package raises errors of its own
        _logger.warning("MLflow: could not mark the run of %s as failed", folder, exc_info=True)


def _key(folder: Location) -> str:
    """An id that every attempt at a trial has, and no other trial."""
    return hashlib.blake2b(str(folder).encode(), digest_size=_ID_BYTES).hexdigest()


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
