"""One trial of a sweep under Ray Tune: its runs one after the other, their measurements reported as they come.

The runs leave their measurements in their folders, as all that they tell; the trial, a process of its own with no
resources to speak of, reads them there. So it does not matter where and how the runs train, and a trial that has ended
tells its curve again when the sweep goes on after a crash.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray import tune

from mode_ray.errors import TrainingError
from mode_ray.models.architecture import CONFIG_FILE
from mode_ray.run_directory import CHECKPOINT_FOLDER
from mode_ray.sweep.plan import SweepTrial
from mode_ray.sweep.results import SweepResult, read_result, write_result
from mode_ray.train.runs.launcher import TrialEnd, launch
from mode_ray.train.runs.measure_job import read_curve
from mode_ray.train.runs.trial import TrialJob

TRIAL_KEY = "trial"
TIME_KEY = "measurement"
METRIC = "recall_at_1"
_POLL_SECONDS = 1.0

Poll = Callable[[], TrialEnd | None]


def run_sweep_trial(parameters: Mapping[str, Any], trials: Mapping[str, SweepTrial]) -> None:
    """Train one trial, or what is left of it; Tune's trainable.

    A trial that fails for good says so in its folder, and ends for Tune like any other: the rest goes on.

    Args:
        parameters: `trial`: its name.
        trials: All trials of the sweep by name.
    """
    trial = trials[parameters[TRIAL_KEY]]
    try:
        for number, recall in measurements(trial, launched):
            tune.report({TIME_KEY: number, METRIC: recall})
    except TrainingError as error:
        write_result(trial.folder, result_of(trial, str(error)))


def result_of(trial: SweepTrial, failure: str | None = None) -> SweepResult:
    """How a trial stands by its folder, or why it failed."""
    written = read_result(trial.folder)
    if written is not None:
        return written
    curve = {number: recall for job in trial.jobs for number, recall in read_curve(job.folder).items()}
    complete = max(curve, default=0) == trial.measurements
    return SweepResult(
        trial=trial.name,
        point=trial.point,
        state="failed" if failure else "finished" if complete else "stopped",
        curve=curve,
        samples=trial.samples,
        reason=failure,
    )


def measurements(trial: SweepTrial, begin: Callable[[TrialJob], Poll]) -> Iterator[tuple[int, float]]:
    """Train, and give each measurement once, in order.

    Args:
        trial: The trial; where it has ended before, nothing is trained.
        begin: Launches a run, and gives what waits a while and tells its end, or None while it goes on.

    Raises:
        TrainingError: One of its runs failed for good.
    """
    ended, told = read_result(trial.folder) is not None, 0
    for job in trial.jobs:
        end = TrialEnd()
        for state in () if ended or _is_trained(job) else _states(job, begin):
            end = state
            for number, recall in _news(job, told):
                yield number, recall
                told = number
        for number, recall in _news(job, told):
            yield number, recall
            told = number
        if end.reason is not None:
            raise TrainingError(end.reason)
        (job.folder / CHECKPOINT_FOLDER).delete()


def launched(job: TrialJob) -> Poll:
    """Start a run as the train stage does, in a task of its own; Ray ends it with this process."""
    reference = launch(job, job.config.train.placement)

    def poll() -> TrialEnd | None:
        ready, _ = ray.wait([reference], timeout=_POLL_SECONDS)
        if not ready:
            return None
        try:
            end: TrialEnd = ray.get(reference)
        except ray.exceptions.RayError as error:
            return TrialEnd(f"launcher lost: {type(error).__name__}", again=True)
        return end

    return poll


def _states(job: TrialJob, begin: Callable[[TrialJob], Poll]) -> Iterator[TrialEnd]:
    """Whenever a poll is over: how the run stands, last of all its end; it is launched again where that may help."""
    for _ in range(job.config.train.placement.max_launches):
        poll = begin(job)
        while (end := poll()) is None:
            yield TrialEnd()
        yield end
        if not end.again:
            return


def _news(job: TrialJob, told: int) -> list[tuple[int, float]]:
    """Measurements of a run after the one of that number."""
    return sorted((number, recall) for number, recall in read_curve(job.folder).items() if number > told)


def _is_trained(job: TrialJob) -> bool:
    """The model's config is the last that a run writes."""
    return (job.folder / CONFIG_FILE).exists()
