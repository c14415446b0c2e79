"""Where a run's logged points go besides its metrics file: TensorBoard always, W&B and MLflow when asked for.

torch and the trackers are imported when they are opened: a driver that only checks the config stays small.
"""

import hashlib
import importlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mode_ray.config.train import TrainConfig
from mode_ray.errors import UsageError
from mode_ray.run_directory import TENSORBOARD_FOLDER
from mode_ray.storage import Location

_STEP = "samples"
_MLFLOW_TAG = "mode_ray.run"
_ID_BYTES = 8


class Tracker(Protocol):
    """Takes the points of one run, on rank 0."""

    def log(self, point: Mapping[str, float]) -> None:
        """Take a point; its `samples` is the step."""

    def flush(self) -> None:
        """Make what was logged so far last."""

    def close(self) -> None:
        """The run is at its end."""


class Trackers:
    """Several trackers as one.

    Args:
        trackers: Those.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, point: Mapping[str, float]) -> None:
        """Take a point; its `samples` is the step."""
        for tracker in self._trackers:
            tracker.log(point)

    def flush(self) -> None:
        """Make what was logged so far last."""
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """The run is at its end."""
        for tracker in self._trackers:
            tracker.close()


class TensorBoardTracker:
    """Event files in the trial's folder; where that is remote, copies of local ones, made at every flush.

    Args:
        folder: The trial's `tensorboard` folder.
        samples_seen: Where the run begins or goes on: points of an earlier attempt behind it are hidden.
    """

    def __init__(self, folder: Location, samples_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._temporary = None if folder.is_local else tempfile.TemporaryDirectory(prefix="mode-ray-tensorboard-")
        self._local = Path(folder.path if self._temporary is None else self._temporary.name)
        self._local.mkdir(parents=True, exist_ok=True)
        self._writer: Any = SummaryWriter(str(self._local), purge_step=samples_seen + 1 if samples_seen else None)

    def log(self, point: Mapping[str, float]) -> None:
        """Take a point; its `samples` is the step."""
        for name, value in point.items():
            if name != _STEP:
                self._writer.add_scalar(name, value, int(point[_STEP]))

    def flush(self) -> None:
        """Make what was logged so far last."""
        self._writer.flush()
        if self._temporary is not None:
            for file in sorted(self._local.iterdir()):
                (self._folder / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        """The run is at its end."""
        self.flush()
        self._writer.close()
        if self._temporary is not None:
            self._temporary.cleanup()


class WandbTracker:
    """A run of Weights & Biases, which a restarted worker goes on with.

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
        # Its own steps may not go back, as ours do after a crash.
        self._run.define_metric("*", step_metric=_STEP)

    def log(self, point: Mapping[str, float]) -> None:
        """Take a point; its `samples` is the step."""
        self._run.log(dict(point))

    def flush(self) -> None:
        """It sends what it is given by itself."""

    def close(self) -> None:
        """The run is at its end."""
        self._run.finish()


class MlflowTracker:
    """A run of MLflow, which a restarted worker goes on with; the server is the one that MLflow's variables name.

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
        if not runs:
            runs = [self._client.create_run(number, tags={_MLFLOW_TAG: key}, run_name=name)]
            for field, value in config.items():
                self._client.log_param(runs[0].info.run_id, field, value)
        self._run_id = runs[0].info.run_id

    def log(self, point: Mapping[str, float]) -> None:
        """Take a point; its `samples` is the step."""
        for name, value in point.items():
            if name != _STEP:
                self._client.log_metric(self._run_id, name, value, step=int(point[_STEP]))

    def flush(self) -> None:
        """It sends what it is given at once."""

    def close(self) -> None:
        """The run is at its end."""
        self._client.set_terminated(self._run_id)


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
        samples_seen: Where the run begins or goes on.

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
