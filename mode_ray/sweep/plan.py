"""The trials of a sweep: a config and training runs for each point. The name of a trial is a hash of its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mode_ray.config.base import config_hash, fingerprint_fields
from mode_ray.config.load import with_values
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location
from mode_ray.sweep.space import Point
from mode_ray.train.plan import DENSE, SEED, Trial, expert_name, plan_trials
from mode_ray.train.runs.measure_job import MeasureJob
from mode_ray.train.runs.trial import TrialJob


@dataclass(frozen=True)
class SweepTrial:
    """One point of a sweep.

    Attributes:
        name: Name of the trial and of its directory.
        point: Values of the swept fields.
        jobs: Training runs; each one follows the run that it continues.
        samples: Samples of all runs together.
        measurements: Number of the last measurement.
    """

    name: str
    point: Point
    jobs: Sequence[TrialJob]
    samples: int
    measurements: int

    @property
    def folder(self) -> Location:
        """The directory of the trial."""
        return self.jobs[0].experts


def swept_expert(config: RunConfig, widest: int) -> int | None:
    """The expert that a sweep trains, or None for the dense baseline.

    Raises:
        UsageError: There is no such expert.
    """
    model = config.sweep.model
    if model == "dense":
        return None
    expert = widest if model == "widest" else int(model)
    if expert >= config.train.experts:
        raise UsageError(f"sweep.model={expert}: the experts are 0 to {config.train.experts - 1}")
    return expert


@dataclass(frozen=True, kw_only=True)
class SweepInputs:
    """What all trials of a sweep share.

    Attributes:
        sweep: Directory of the sweep.
        assignments: Directory of the assignments.
        clusters: Directory of the clustering.
        held_out: File with the held-out pairs.
        held_out_below: Rows with a hash below this are excluded from training.
        pairs_n: Number of pairs of each expert.
        expert: The expert to train, or None for the dense baseline.
        data_hash: Content hash of the assignments.
    """

    sweep: Location
    assignments: Location
    clusters: Location
    held_out: Location
    held_out_below: int
    pairs_n: np.ndarray
    expert: int | None
    data_hash: str


def plan_sweep(config: RunConfig, points: Sequence[Point], inputs: SweepInputs) -> list[SweepTrial]:
    """The trials of a sweep, in the order of the points.

    Raises:
        UsageError: A point is not a valid config; the message names the field.
    """
    return [_plan_one(with_values(config, point), point, inputs) for point in points]


def _plan_one(config: RunConfig, point: Point, inputs: SweepInputs) -> SweepTrial:
    runs = [
        replace(run, members=replace(run.members, held_out_below=inputs.held_out_below))
        for run in _runs(config, inputs)
    ]
    total = sum(run.samples for run in runs)
    decides = {
        **fingerprint_fields(config.train, "train"),
        **fingerprint_fields(config.images, "images"),
        "runs": repr(runs),
        "measurements": config.sweep.measurements,
        "data": inputs.data_hash,
    }
    name = config_hash(decides)
    jobs = [
        TrialJob(
            trial=run,
            config=config,
            assignments=inputs.assignments,
            clusters=inputs.clusters,
            experts=inputs.sweep / name,
            measure=MeasureJob(
                pairs=inputs.held_out,
                measurements=config.sweep.measurements,
                samples_before=sum(earlier.samples for earlier in runs[:number]),
                samples_total=total,
            ),
        )
        for number, run in enumerate(runs)
    ]
    return SweepTrial(name, point, jobs, total, config.sweep.measurements)


def _runs(config: RunConfig, inputs: SweepInputs) -> list[Trial]:
    """The seed and the expert, or the dense baseline."""
    train = config.train.model_copy(update={"controls": ("dense",)})
    planned = {trial.name: trial for trial in plan_trials(train, inputs.pairs_n, range(train.experts))}
    if inputs.expert is None:
        return [planned[DENSE]]
    expert = planned[expert_name(train.experts, inputs.expert)]
    return [expert] if expert.parent is None else [planned[SEED], expert]
