"""What the driver, the launchers and the workers of a training run tell one another, by files in its directory.

Nothing here needs torch: drivers and launchers stay small.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mode_ray.config.run import RunConfig
from mode_ray.pairs.members import TrainingSet
from mode_ray.run_directory import ERROR_FILE, METRICS_FILE, PLAN_FILE, PROGRESS_FILE
from mode_ray.stages.manifest import Manifest, read_manifest
from mode_ray.storage import Location
from mode_ray.train.plan import Trial
from mode_ray.train.runs.measure_job import MeasureJob


@dataclass(frozen=True)
class TrialJob:
    """Everything a worker needs to know.

    Attributes:
        trial: What to train.
        config: The run's config.
        assignments: Directory of the assignment shards.
        clusters: Directory of the clustering.
        experts: Directory of all trials' outputs.
        measure: What to measure while it trains, in a sweep.
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


def trials_of(manifest: Manifest) -> list[Trial]:
    """The trials of a finished train stage, as they were trained."""
    return planned_trials_of(manifest.summary)


def planned_trials_of(summary: Mapping[str, Any]) -> list[Trial]:
    """The trials of a train stage by its summary, finished or not."""
    return [Trial(**{**values, "members": TrainingSet(**values["members"])}) for values in summary["trials"]]


def training_summary(directory: Location) -> Mapping[str, Any] | None:
    """What a train stage trains, by its manifest or, until all is finished, by its plan; None before it began."""
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
    """Why a trial's launch cannot go on, in one line, or None."""
    location = folder / ERROR_FILE
    return location.read_text() if location.exists() else None


def read_progress(folder: Location) -> dict[str, float] | None:
    """The newest logged point of a trial, or None before the first."""
    location = folder / PROGRESS_FILE
    if not location.exists():
        return None
    point: dict[str, float] = json.loads(location.read_text())
    return point
