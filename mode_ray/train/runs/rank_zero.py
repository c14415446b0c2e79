"""The work of rank 0 during training: it decides what is due, logs points, and writes progress and checkpoints."""

import time
from collections.abc import Mapping

from mode_ray.train.runs.agreement import Order
from mode_ray.train.runs.checkpoint_schedule import CheckpointSchedule
from mode_ray.train.runs.checkpoint_writer import CheckpointWriter
from mode_ray.train.runs.progress_writer import ProgressWriter
from mode_ray.train.runs.stop import STOPPED_SAMPLES
from mode_ray.train.runs.trackers import Trackers
from mode_ray.train.step.loop import Snapshot


class RankZero:
    """Logs points, and writes progress and checkpoints in background threads: training does not wait for them."""

    def __init__(
        self,
        schedule: CheckpointSchedule,
        checkpoints: CheckpointWriter,
        progress: ProgressWriter,
        trackers: Trackers,
        workers: int,
    ) -> None:
        self._schedule = schedule
        self.checkpoints = checkpoints
        self._progress = progress
        self.trackers = trackers
        self._workers = workers
        self._point: Mapping[str, float] = {}
        self._is_stopping = False
        self._last_checkpoint: int | None = None

    def log(self, point: Mapping[str, float]) -> None:
        """Record the newest logged point."""
        self._point = point
        self.trackers.log(point)

    def after_step(self, samples: int) -> Order:
        """Write progress if it is due, and return what all ranks should do."""
        now = time.monotonic()
        if self._progress.is_due(now):
            self._progress.write(self._figures(samples), now)
        if self._progress.is_stop_requested and not self._is_stopping:
            self._is_stopping = True
            self._schedule.request()
        return self._schedule.order(now, samples, is_writing=self.checkpoints.is_writing())

    def write_checkpoint(self, snapshot: Snapshot, samples: int, *, preempted: bool) -> None:
        """Begin to write a checkpoint, and flush the trackers after it.

        `preempted` says that a node of the run is about to be preempted.
        """
        if preempted:
            self._schedule.saw_preemption()
        then = self.trackers.preempted if preempted else self.trackers.flush
        self.checkpoints.write(snapshot, samples, then, preempted=preempted)
        self._schedule.began_checkpoint(time.monotonic(), samples)
        if self._is_stopping and self._last_checkpoint is None:
            self._last_checkpoint = samples

    def write_last_progress(self, samples: int) -> None:
        """Write the final progress, and wait for it."""
        self._progress.write(self._figures(samples), time.monotonic())
        self._progress.wait()

    def _figures(self, samples: int) -> dict[str, float]:
        figures = {**self._point, "samples": float(samples), "workers": float(self._workers)}
        if (newest := self.checkpoints.newest) is not None:
            figures |= {"checkpoint_samples": newest.samples, "checkpoint_unix_seconds": newest.unix_seconds}
            if self._last_checkpoint is not None and newest.samples >= self._last_checkpoint:
                figures[STOPPED_SAMPLES] = newest.samples
        return figures
