"""The asynchronous scheduler: carries out what `TrialQueue` decides, with one zero-CPU launcher task a trial.

Experts never wait for one another, and one that fails for good ends alone. It also writes the status files.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from mode_ray.config.train import TrainPlacement
from mode_ray.run_directory import CHECKPOINT_FOLDER
from mode_ray.train.plan import Trial
from mode_ray.train.runs.launcher import TrialEnd, launch
from mode_ray.train.runs.queue import TrialQueue
from mode_ray.train.runs.status import TrialStatus, read_status, write_status
from mode_ray.train.runs.trial import TrialJob, read_progress

_POLL_SECONDS = 1.0
_PROGRESS_SECONDS = 4.0


def run_trials(
    jobs: Mapping[str, TrialJob],
    queue: TrialQueue,
    placement: TrainPlacement,
    on_change: Callable[[Mapping[str, TrialStatus]], None],
    check: Callable[[], None] = lambda: None,
) -> dict[str, TrialStatus]:
    """Run all trials of a queue; returns when none waits or runs.

    Args:
        jobs: By trial name.
        queue: The trials, with the statuses to begin with.
        placement: Resources of the runs.
        on_change: Called once a second with all statuses.
        check: Called once a second; what it raises ends all runs that were launched.
    """
    launchers: dict[ray.ObjectRef[Any], tuple[Trial, float]] = {}
    files = _StatusFiles(jobs)
    try:
        while queue.unfinished():
            check()
            for trial in queue.startable():
                queue.started(trial)
                launchers[launch(jobs[trial.name], placement)] = (trial, time.monotonic())
            files.take_progress(queue, [trial for trial, _ in launchers.values()])
            files.write(queue.statuses)
            on_change(queue.statuses)
            ready, _ = ray.wait(list(launchers), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                trial, began = launchers.pop(reference)
                seconds = round(time.monotonic() - began, 3)
                end = _end_of(reference)
                if end.reason is None:
                    queue.finished(trial, seconds)
                    # Only when the status file says so too: a driver that dies in between would train it all again.
                    files.write(queue.statuses)
                    (jobs[trial.name].folder / CHECKPOINT_FOLDER).delete()
                else:
                    queue.failed(trial, end.reason, seconds, again=end.again)
    finally:
        # In a session that outlives this call (a notebook) they would train on without anyone to wait for them.
        for reference in launchers:
            ray.cancel(reference, force=True)
    files.write(queue.statuses)
    on_change(queue.statuses)
    return queue.statuses


def _end_of(reference: "ray.ObjectRef[Any]") -> TrialEnd:
    try:
        end: TrialEnd = ray.get(reference)
    except ray.exceptions.RayError as error:
        return TrialEnd(f"launcher lost: {type(error).__name__}", again=True)
    return end


class _StatusFiles:
    """The status files, written where a status changed.

    Args:
        jobs: By trial name.
    """

    def __init__(self, jobs: Mapping[str, TrialJob]) -> None:
        self._folders = {name: job.folder for name, job in jobs.items()}
        self._written: dict[str, TrialStatus | None] = {
            name: read_status(folder) for name, folder in self._folders.items()
        }
        self._taken = time.monotonic()

    def take_progress(self, queue: TrialQueue, running: Sequence[Trial]) -> None:
        """Every few seconds, the figures that the running trials left."""
        now = time.monotonic()
        if now - self._taken < _PROGRESS_SECONDS:
            return
        self._taken = now
        for trial in running:
            progress = read_progress(self._folders[trial.name])
            if progress is not None:
                queue.progressed(trial, progress)

    def write(self, statuses: Mapping[str, TrialStatus]) -> None:
        """Write those that changed."""
        for name, status in statuses.items():
            if self._written[name] != status:
                write_status(self._folders[name], status)
                self._written[name] = status
