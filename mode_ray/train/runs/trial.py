"""The job of a trial, and the files in its directory by which driver, launcher and workers communicate.

Nothing here imports torch, so that drivers and launchers stay small.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mode_ray.config.run import RunConfig
from mode_ray.pairs.members import TrainingSet
from mode_ray.run_directory import ERROR_FILE, METRICS_FILE, PLAN_FILE, PROGRESS_FILE, stage_directories
from mode_ray.stages.manifest import read_manifest
from mode_ray.storage import Location
from mode_ray.train.plan import Trial
from mode_ray.train.runs.measure_job import MeasureJob


@dataclass(frozen=True)
class TrialJob:
    """The arguments of a worker.

    Attributes:
        trial: The trial to train.
        config: The run's config.
        assignments: Directory of the assignments.
        clusters: Directory of the clustering.
        experts: Directory of all trials' outputs.
        measure: Measurements during training, in a sweep.
    """

    trial: Trial
    config: RunConfig
    assignments: Location
    clusters: Location
    experts: Location
    measure: MeasureJob | None = None

    @property
    def folder(self) -> Location:
        """The trial's own directory."""
        return self.experts / self.trial.name

    @property
    def on_demand(self) -> "TrialJob":
        """The same job on on-demand machines. Its checkpoints are the same, because they do not depend on machines."""
        train = self.config.train
        train = train.model_copy(update={"placement": train.placement.on_demand})
        return replace(self, config=self.config.model_copy(update={"train": train}))

    @property
    def features(self) -> Location:
        """Directory of the features, which the run has with `train.data.mode: features`."""
        # Not by `config.directory`: a relative one is relative to the driver's working directory.
        return stage_directories(self.assignments.parent)["features"]


def planned_trials_of(summary: Mapping[str, Any]) -> list[Trial]:
    """The trials in the summary of a train stage, finished or not."""
    return [Trial(**{**values, "members": TrainingSet(**values["members"])}) for values in summary["trials"]]


def training_summary(directory: Location) -> Mapping[str, Any] | None:
    """The summary in a train stage's manifest or, until it is finished, in its plan; None before it began."""
    manifest, plan = read_manifest(directory), directory / PLAN_FILE
    if manifest is not None:
        return manifest.summary
    if not plan.exists():
        return None
    summary: dict[str, Any] = json.loads(plan.read_text())
    return summary


def read_metrics(folder: Location) -> dict[str, Any]:
    """The metrics file of a finished trial: loop state, `pairs` of its training set, `samples`."""
    metrics: dict[str, Any] = json.loads((folder / METRICS_FILE).read_text())
    return metrics


def read_error(folder: Location) -> str | None:
    """The permanent error of a trial's last launch, in one line, or None."""
    location = folder / ERROR_FILE
    return location.read_text() if location.exists() else None


def read_progress(folder: Location) -> dict[str, float] | None:
    """The newest figures of a trial, or None before the first."""
    location = folder / PROGRESS_FILE
    if not location.exists():
        return None
    point: dict[str, float] = json.loads(location.read_text())
    return point
