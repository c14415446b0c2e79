"""One trial of a sweep under Ray Tune: it trains its runs in order and reports each measurement.

The runs write their measurements to their folders. The trial is a separate process with almost no resources that reads
them there. So the runs can train anywhere, and a finished trial reports its curve again when the sweep is resumed.
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
    """Train one trial, or the rest of it; the trainable of Tune.

    A trial that fails permanently writes that to its folder, and ends normally for Tune, so the other trials continue.

    Args:
        parameters: The name of the trial, as `trial`.
        trials: All trials of the sweep by name.
    """
    trial = trials[parameters[TRIAL_KEY]]
    try:
        for number, recall in measurements(trial, launched):
            tune.report({TIME_KEY: number, METRIC: recall})
    except TrainingError as error:
        write_result(trial.folder, result_of(trial, str(error)))


def result_of(trial: SweepTrial, failure: str | None = None) -> SweepResult:
    """The result of a trial according to its folder, or its failure."""
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
    """Train a trial, and yield each measurement once, in order.

    Args:
        trial: The trial. Nothing is trained if it ended before.
        begin: Launches a run. The result is a function that waits a while and returns the end of the run, or None.

    Raises:
        TrainingError: One of its runs failed permanently.
    """
    ended, reported = read_result(trial.folder) is not None, 0
    for job in trial.jobs:
        end = TrialEnd()
        for state in () if ended or _is_trained(job) else _states(job, begin):
            end = state
            for number, recall in _news(job, reported):
                yield number, recall
                reported = number
        for number, recall in _news(job, reported):
            yield number, recall
            reported = number
        if end.reason is not None:
            raise TrainingError(end.reason)
        (job.folder / CHECKPOINT_FOLDER).delete()


def launched(job: TrialJob) -> Poll:
    """Start a run as the train stage does, in a separate task. Ray ends it with this process."""
    reference = launch(job)

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
    """The state of the run after each poll, and at last its end. The run is relaunched if that can help."""
    launches, chosen = 0, job
    while launches < job.config.train.placement.max_launches:
        poll = begin(chosen)
        while (end := poll()) is None:
            yield TrialEnd()
        if end.waited:
            chosen = job.on_demand if chosen is job else job
            continue
        yield end
        if not end.again:
            return
        launches += 1


def _news(job: TrialJob, reported: int) -> list[tuple[int, float]]:
    """Measurements of a run with a number above `reported`."""
    return sorted((number, recall) for number, recall in read_curve(job.folder).items() if number > reported)


def _is_trained(job: TrialJob) -> bool:
    """Whether a run is finished: it writes the config of its model last."""
    return (job.folder / CONFIG_FILE).exists()
