"""What a training worker does between two steps: progress for people, and checkpoints, by the clock of rank 0.

Neither makes training wait for the storage: both are written by threads in the background, one of each at a time.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import ray.train
import ray.train.collective

from mode_ray.run_directory import PROGRESS_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.agreement import Agreement, Order
from mode_ray.train.runs.checkpoints import checkpoint_name, whole_checkpoints, write_checkpoint
from mode_ray.train.runs.trackers import Trackers, open_trackers
from mode_ray.train.runs.trial import TrialJob
from mode_ray.train.step.loop import Snapshot, TrainLoop

_PROGRESS_INTERVAL_SECONDS = 2.0
# As often as Ray Train itself asks which nodes are to go.
_PREEMPTION_INTERVAL_SECONDS = 5.0
_ASYNC = ray.train.CheckpointUploadMode.ASYNC
_logger = logging.getLogger(__name__)


class Reporter:
    """Follows one worker's training loop.

    Args:
        job: What is trained.
        loop: The loop.
        checkpoints: The run's folder of checkpoints.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(self, job: TrialJob, loop: TrainLoop, checkpoints: Location, rank: int, world_size: int) -> None:
        self._loop = loop
        self._checkpoints = checkpoints
        self._rank = rank
        self._world_size = world_size
        self._interval_seconds = job.config.train.placement.checkpoint_interval_seconds
        self._samples = job.trial.samples
        self._agreement = Agreement() if world_size > 1 else None
        seen = loop.state.samples_seen
        self._trackers = (
            open_trackers(job.folder, job.trial.name, job.config.train, seen) if rank == 0 else Trackers([])
        )
        under_ray = job.config.train.placement.workers_per_run > 0
        self._writer = _CheckpointWriter(checkpoints, self._trackers.flush, under_ray=under_ray)
        self._progress = _ProgressWriter(job.folder / PROGRESS_FILE)
        self._point: Mapping[str, float] = {}
        self._last_checkpoint = self._last_progress = self._last_asked = time.monotonic()
        self._checkpointed_samples = loop.state.samples_seen
        self._preemption_answered = False

    def log(self, point: Mapping[str, float]) -> None:
        """Take note of the newest logged point."""
        self._point = point
        self._trackers.log(point)

    def after_step(self) -> None:
        """Write progress and a checkpoint where it is time to."""
        if self._loop.state.samples_seen >= self._samples:
            return
        now = time.monotonic()
        if self._rank == 0 and now - self._last_progress >= _PROGRESS_INTERVAL_SECONDS:
            self._last_progress = now
            self._write_progress()
        wanted = self._wanted(now) if self._rank == 0 else Order.NOTHING
        order = wanted if self._agreement is None else self._agreement.exchange(wanted)
        if order == Order.CHECKPOINT or (order == Order.ASK_FOR_PREEMPTION and self._is_preempted()):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Checkpoint now; every rank must call it after the same step."""
        samples = self._loop.state.samples_seen
        snapshot = self._loop.snapshot()
        if self._rank == 0:
            self._writer.write(snapshot, samples)
        else:  # Ray Train counts the reports of every rank
            ray.train.report({"samples": samples}, checkpoint_upload_mode=_ASYNC)
        self._checkpointed_samples = samples
        self._last_checkpoint = time.monotonic()

    def newest(self) -> Location | None:
        """The newest checkpoint, after the one that is being written; every rank must call it at the same time."""
        if self._agreement is not None:
            self._agreement.forget()
        self._writer.wait()
        return newest_checkpoint(self._checkpoints, self._rank)

    def close(self) -> None:
        """Wait until what was begun is written, and write the last progress."""
        if self._agreement is not None:
            self._agreement.forget()
        self._writer.wait()
        if self._rank == 0:
            self._progress.wait()
            self._write_progress()
            self._progress.wait()

    def _wanted(self, now: float) -> Order:
        """What rank 0 finds due."""
        if self._writer.is_busy() or self._loop.state.samples_seen == self._checkpointed_samples:
            return Order.NOTHING
        if now - self._last_checkpoint >= self._interval_seconds:
            self._last_checkpoint = now
            return Order.CHECKPOINT
        if not self._preemption_answered and now - self._last_asked >= _PREEMPTION_INTERVAL_SECONDS:
            self._last_asked = now
            return Order.ASK_FOR_PREEMPTION
        return Order.NOTHING

    def _is_preempted(self) -> bool:
        """Whether a node of this run is about to be taken away: one more checkpoint before it is, not several."""
        self._preemption_answered = ray.train.get_preemption_info() is not None
        return self._preemption_answered

    def _write_progress(self) -> None:
        newest = self._writer.written
        checkpoint = {"checkpoint_samples": newest[0], "checkpoint_unix_seconds": newest[1]} if newest else {}
        now = {"samples": float(self._loop.state.samples_seen), "workers": float(self._world_size)}
        self._progress.write({**self._point, **now, **checkpoint})


def newest_checkpoint(checkpoints: Location, rank: int) -> Location | None:
    """The newest whole checkpoint as rank 0 sees it, or None; every rank must call it at the same time."""
    found = whole_checkpoints(checkpoints)[-1:] if rank == 0 else []
    name: str | None = ray.train.collective.broadcast_from_rank_zero(found[0].name if found else None)
    return None if name is None else checkpoints / name


class _CheckpointWriter:
    """Writes at most one checkpoint at a time: in Ray Train's upload thread, or without a worker group in its own."""

    def __init__(self, checkpoints: Location, after_write: Callable[[], None], *, under_ray: bool) -> None:
        self.written: tuple[int, float] | None = None
        self._checkpoints = checkpoints
        self._after_write = after_write
        self._under_ray = under_ray
        self._idle = Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._future: Future[None] | None = None

    def is_busy(self) -> bool:
        """Whether one is being written."""
        if self._future is not None and self._future.done():
            self.wait()
        return not self._idle.is_set()

    def wait(self) -> None:
        """Wait until none is being written; raises what a thread of our own met (Ray Train sees to its own)."""
        if self._future is not None:
            future, self._future = self._future, None
            future.result()
        self._idle.wait()

    def write(self, snapshot: Snapshot, samples: int) -> None:
        """Begin to write a checkpoint."""
        name = checkpoint_name(samples)
        self.wait()
        self._idle.clear()
        if not self._under_ray:
            self._future = self._thread.submit(self._write, name, snapshot, samples)
            return
        storage = ray.train.get_context().get_storage()
        target = ray.train.Checkpoint(storage.build_checkpoint_path_from_name(name), storage.storage_filesystem)

        def upload(target: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            self._write(name, snapshot, samples)
            return target

        ray.train.report(
            {"samples": samples},
            checkpoint=target,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=_ASYNC,
            # There is no copy on this machine: what is to be uploaded goes from memory to its place.
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=upload,
        )

    def _write(self, name: str, snapshot: Snapshot, samples: int) -> None:
        try:
            write_checkpoint(self._checkpoints / name, snapshot)
            self.written = (samples, time.time())
            if not self._under_ray:
                for older in whole_checkpoints(self._checkpoints)[:-1]:
                    older.delete()
        finally:
            self._idle.set()


class _ProgressWriter:
    """Writes the newest figures, and leaves out those that come while others are being written."""

    def __init__(self, file: Location) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, "progress")
        self._future: Future[None] | None = None

    def write(self, figures: Mapping[str, float]) -> None:
        """Begin to write."""
        if self._future is None or self._future.done():
            self._note_failure()
            self._future = self._thread.submit(self._file.write_text, json.dumps(figures))

    def wait(self) -> None:
        """Wait until the last ones are written."""
        self._note_failure()

    def _note_failure(self) -> None:
        """Figures that could not be written are no reason to end a run."""
        if self._future is not None and (error := self._future.exception()) is not None:
            _logger.warning("progress was not written: %s", error)
        self._future = None
