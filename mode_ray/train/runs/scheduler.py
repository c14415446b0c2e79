"""The asynchronous scheduler: runs one zero-CPU launcher task per trial, in the order that `TrialQueue` decides.

Experts never wait for each other, and a permanent failure ends only that expert. The scheduler also writes the status
files.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from mode_ray.run_directory import CHECKPOINT_FOLDER, INTERRUPTIONS_FILE, PROGRESS_FILE, STOP_FILE
from mode_ray.train.plan import Trial
from mode_ray.train.runs.interruptions import ray_reason, read_interruptions
from mode_ray.train.runs.launcher import TrialEnd, launch
from mode_ray.train.runs.queue import TrialQueue
from mode_ray.train.runs.status import TrialStatus, read_status, write_status
from mode_ray.train.runs.stop import PATIENCE_SECONDS, write_last_checkpoints
from mode_ray.train.runs.trial import TrialJob, read_progress
from mode_ray.util.ray_tasks import cancel_unfinished

_POLL_SECONDS = 1.0
_PROGRESS_SECONDS = 4.0


def run_trials(
    jobs: Mapping[str, TrialJob],
    queue: TrialQueue,
    on_change: Callable[[Mapping[str, TrialStatus]], None],
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, TrialStatus]:
    """Run all trials of a queue; returns when none is waiting or running.

    `on_change` and `check` are called once a second. An exception of `check` ends all runs that were launched. After
    SIGTERM the runs get some seconds to write a checkpoint, which `say` reports.
    """
    launchers: dict[ray.ObjectRef[Any], tuple[Trial, float]] = {}
    files = _StatusFiles(jobs)
    try:
        while queue.unfinished():
            check()
            for trial in queue.startable():
                files.forget_last_launch(trial)
                queue.started(trial)
                job = jobs[trial.name]
                job = job.on_demand if queue.statuses[trial.name].on_demand else job
                launchers[launch(job)] = (trial, time.monotonic())
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
                    # The status is written before the checkpoints are deleted: if the driver dies between the two,
                    # the trial is not trained again.
                    files.write(queue.statuses)
                    (jobs[trial.name].folder / CHECKPOINT_FOLDER).delete()
                elif end.waited:
                    queue.waited(trial, seconds)
                    machines = "on-demand" if queue.statuses[trial.name].on_demand else "spot or on-demand"
                    say(f"{trial.name}: {end.reason}; it is launched again on {machines} machines")
                else:
                    queue.failed(trial, end.reason, seconds, again=end.again)
    except SystemExit:  # SIGTERM, see sigterm_as_exit
        files.take_last_checkpoints(queue, [trial for trial, _ in launchers.values()], say)
        queue.stopped()
        files.write(queue.statuses)
        raise
    except KeyboardInterrupt:
        # The files must not show runs that have ended.
        queue.stopped()
        files.write(queue.statuses)
        raise
    finally:
        # Without this, launchers would keep training in a Ray session that outlives this call, such as a notebook's.
        cancel_unfinished(list(launchers))
    files.write(queue.statuses)
    on_change(queue.statuses)
    return queue.statuses


def _end_of(reference: "ray.ObjectRef[Any]") -> TrialEnd:
    try:
        end: TrialEnd = ray.get(reference)
    except ray.exceptions.RayError as error:
        return TrialEnd(f"launcher lost: {ray_reason(error)}", again=True)
    return end


class _StatusFiles:
    """Writes the status files of trials whose status changed."""

    def __init__(self, jobs: Mapping[str, TrialJob]) -> None:
        self._folders = {name: job.folder for name, job in jobs.items()}
        self._written: dict[str, TrialStatus | None] = {
            name: read_status(folder) for name, folder in self._folders.items()
        }
        self._interruptions = dict.fromkeys(jobs, 0)
        self._taken = time.monotonic()

    def forget_last_launch(self, trial: Trial) -> None:
        """Delete what the last launch of a trial left: otherwise its figures would be shown as new ones."""
        for name in (PROGRESS_FILE, INTERRUPTIONS_FILE, STOP_FILE):
            (self._folders[trial.name] / name).delete()
        self._interruptions[trial.name] = 0

    def take_progress(self, queue: TrialQueue, running: Sequence[Trial]) -> None:
        """Read the files of running trials, at most every few seconds: losses of workers, then the progress."""
        now = time.monotonic()
        if now - self._taken < _PROGRESS_SECONDS:
            return
        self._taken = now
        for trial in running:
            folder = self._folders[trial.name]
            losses = read_interruptions(folder)[self._interruptions[trial.name] :]
            self._interruptions[trial.name] += len(losses)
            progress = read_progress(folder)
            if progress is not None:
                queue.progressed(trial, progress)
            for reason in losses:
                queue.interrupted(trial, reason)
            if losses:
                (folder / PROGRESS_FILE).delete()  # of the workers that were lost

    def take_last_checkpoints(self, queue: TrialQueue, running: Sequence[Trial], say: Callable[[str], None]) -> None:
        """Let the running trials write a checkpoint before their driver ends."""
        say(f"stopping: up to {PATIENCE_SECONDS:.0f} s for a checkpoint of each of {len(running)} runs")
        written = write_last_checkpoints({trial.name: self._folders[trial.name] for trial in running})
        for trial in running:
            if trial.name in written and (progress := read_progress(self._folders[trial.name])) is not None:
                queue.progressed(trial, progress)
        points = [f"{name} at {samples:,} samples" for name, samples in written.items()]
        say(f"stopped; last checkpoints: {', '.join(points) or 'none'}; the same command resumes")

    def write(self, statuses: Mapping[str, TrialStatus]) -> None:
        """Write the statuses that changed."""
        for name, status in statuses.items():
            if self._written[name] != status:
                write_status(self._folders[name], status)
                self._written[name] = status
