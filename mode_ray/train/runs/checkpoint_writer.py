"""Writes one checkpoint at a time while training continues."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import ray.train

from mode_ray.storage import Location
from mode_ray.train.runs.checkpoint_folders import checkpoint_name, whole_checkpoints
from mode_ray.train.runs.checkpoints import write_checkpoint
from mode_ray.train.runs.interruptions import PREEMPTED
from mode_ray.train.step.loop import Snapshot

_ASYNC = ray.train.CheckpointUploadMode.ASYNC


@dataclass(frozen=True)
class WrittenCheckpoint:
    """The newest complete checkpoint of this process."""

    samples: int
    unix_seconds: float


class CheckpointWriter:
    """Writes at most one checkpoint at a time, on rank 0.

    In a worker group of Ray Train, Ray's upload thread writes the checkpoints, and Ray deletes older ones. Without a
    worker group, a thread of this class does both.

    Args:
        checkpoints: The run's folder of checkpoints.
        under_ray: Whether this process is a worker of a group.

    Attributes:
        newest: The newest complete checkpoint.
    """

    def __init__(self, checkpoints: Location, *, under_ray: bool) -> None:
        self.newest: WrittenCheckpoint | None = None
        self._checkpoints = checkpoints
        self._under_ray = under_ray
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written; raises the errors of `wait`."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is not None

    def wait(self) -> None:
        """Wait until no checkpoint is being written. Raises the writing thread's error; Ray Train raises its own."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def write(self, snapshot: Snapshot, samples: int, then: Callable[[], None], *, preempted: bool = False) -> None:
        """Wait for the previous checkpoint, and begin to write this one.

        `then` is called in the writing thread once the checkpoint is complete. `preempted` is reported to Ray Train.
        """
        self.wait()
        if self._under_ray:
            self._writing = self._report(snapshot, samples, then, preempted=preempted)
        else:
            self._writing = self._thread.submit(self._write_and_delete_older, snapshot, samples, then)

    def _report(self, snapshot: Snapshot, samples: int, then: Callable[[], None], *, preempted: bool) -> Future[None]:
        """Report the checkpoint to Ray Train, whose upload thread calls back to write it."""
        name, writing = checkpoint_name(samples), Future[None]()
        storage = ray.train.get_context().get_storage()
        target = ray.train.Checkpoint(storage.build_checkpoint_path_from_name(name), storage.storage_filesystem)

        def upload(target: ray.train.Checkpoint, _name: str) -> ray.train.Checkpoint:
            try:
                self._write(snapshot, samples, then)
            finally:
                writing.set_result(None)
            return target

        ray.train.report(
            {"samples": samples, PREEMPTED: preempted},
            checkpoint=target,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=_ASYNC,
            # There is no local copy to delete: the checkpoint is written from memory to its storage.
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=upload,
        )
        return writing

    def _write_and_delete_older(self, snapshot: Snapshot, samples: int, then: Callable[[], None]) -> None:
        self._write(snapshot, samples, then)
        for older in whole_checkpoints(self._checkpoints)[:-1]:
            older.delete()

    def _write(self, snapshot: Snapshot, samples: int, then: Callable[[], None]) -> None:
        write_checkpoint(self._checkpoints / checkpoint_name(samples), snapshot)
        self.newest = WrittenCheckpoint(samples, time.time())
        then()


def report_without_checkpoint(samples: int) -> None:
    """The report of ranks above 0 when rank 0 reports a checkpoint: Ray Train needs a report from every rank."""
    ray.train.report({"samples": samples}, checkpoint_upload_mode=_ASYNC)
