"""Where a run's logged points go besides its metrics file: TensorBoard always, W&B and MLflow when asked for.

torch and the trackers are imported when they are opened: a driver that only checks the config stays small.
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
    """Several trackers as one. One that cannot be reached is logged as a warning: it must not end the training.

    Args:
        trackers: The trackers.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, point: Mapping[str, float]) -> None:
        """Record a point; its `samples` is the step."""
        self._each("log", lambda tracker: tracker.log(point))

    def flush(self) -> None:
        """Store everything that was recorded so far."""
        self._each("flush", lambda tracker: tracker.flush())

    def preempted(self) -> None:
        """Store everything, and mark the run as interrupted: this process may be killed without another call."""
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
        samples_seen: Where the run begins or resumes; TensorBoard hides later points of an earlier attempt.
    """

    def __init__(self, folder: Location, samples_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._temporary = None if folder.is_local else tempfile.TemporaryDirectory(prefix="mode-ray-tensorboard-")
        self._local = Path(folder.path if self._temporary is None else self._temporary.name)
        self._local.mkdir(parents=True, exist_ok=True)
        # A failed run is closed while its last checkpoint, and the flush after it, may still be under way.
        self._storing = Lock()
        self._is_open = True
        self._writer: Any = SummaryWriter(str(self._local), purge_step=samples_seen + 1 if samples_seen else None)

    def log(self, point: Mapping[str, float]) -> None:
        """Record a point; its `samples` is the step."""
        for name, value in point.items():
            if name != _STEP:
                self._writer.add_scalar(name, value, int(point[_STEP]))

    def flush(self) -> None:
        """Store everything that was recorded so far; nothing once it is closed."""
        with self._storing:
            if self._is_open:
                self._store()

    def preempted(self) -> None:
        """Store everything; TensorBoard knows no states of a run."""
        self.flush()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - it knows no states of a run
        """Store everything, and close the files."""
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

    Args:
        project: Its project.
        name: As shown.
        key: The same for every attempt at this run, and for no other run.
        config: Shown beside the run.
    """

    def __init__(self, project: str, name: str, key: str, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=project, name=name, id=key, resume="allow", config=dict(config), dir=tempfile.gettempdir()
        )
        # W&B's own steps must not decrease. Ours do, when a run resumes from a checkpoint.
        self._run.define_metric("*", step_metric=_STEP)

    def log(self, point: Mapping[str, float]) -> None:
        """Record a point; its `samples` is the step."""
        self._run.log(dict(point))

    def flush(self) -> None:
        """Nothing to do: W&B sends points in the background."""

    def preempted(self) -> None:
        """Mark the run as preempting; W&B reports this at once, and shows it as preempted if nothing more comes."""
        self._run.mark_preempting()

    def close(self, *, failed: bool) -> None:
        """Send everything, and end the run as finished or failed."""
        self._run.finish(exit_code=1 if failed else 0)


class MlflowTracker:
    """A run of MLflow; a restarted worker resumes it. MLflow's environment variables name the server.

    Args:
        experiment: Its experiment.
        name: As shown.
        key: The same for every attempt at this run, and for no other run.
        config: Its parameters.
    """

    def __init__(self, experiment: str, name: str, key: str, config: Mapping[str, Any]) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._client = mlflow.MlflowClient()
        number = mlflow.set_experiment(experiment).experiment_id
        runs = self._client.search_runs([number], f"tags.`{_MLFLOW_TAG}` = '{key}'", max_results=1)
        if runs:
            self._client.update_run(runs[0].info.run_id, status="RUNNING")
        else:
            runs = [self._client.create_run(number, tags={_MLFLOW_TAG: key}, run_name=name)]
            for field, value in config.items():
                self._client.log_param(runs[0].info.run_id, field, value)
        self._run_id = runs[0].info.run_id

    def log(self, point: Mapping[str, float]) -> None:
        """Record a point; its `samples` is the step."""
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


_ASKED_FOR: dict[str, type[WandbTracker] | type[MlflowTracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def check_trackers(names: Sequence[str]) -> None:
    """Find out early that a tracker cannot be used.

    Raises:
        UsageError: Its package is not installed here.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"train.placement.trackers: {name} is not installed; pip install {name} where the workers run, "
                "or leave it out"
            )


def open_trackers(folder: Location, name: str, config: TrainConfig, samples_seen: int) -> Trackers:
    """The trackers of a run; for rank 0 alone.

    Args:
        folder: The trial's folder.
        name: The trial's name.
        config: Which trackers; what is shown beside the run.
        samples_seen: Where the run begins or resumes.

    Raises:
        UsageError: As `check_trackers`.
    """
    placement = config.placement
    check_trackers(placement.trackers)
    key = hashlib.blake2b(str(folder).encode(), digest_size=_ID_BYTES).hexdigest()
    shown = _flat(config.model_dump(mode="json", exclude={"placement"}))
    asked_for = [_ASKED_FOR[kind](placement.tracker_project, name, key, shown) for kind in placement.trackers]
    return Trackers([TensorBoardTracker(folder / TENSORBOARD_FOLDER, samples_seen), *asked_for])


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
