"""The work of every rank between two steps: it carries out what rank 0 decided."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import ray.train
import ray.train.collective

from mode_ray.run_directory import PROGRESS_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.agreement import Agreement, Order
from mode_ray.train.runs.checkpoint_folders import whole_checkpoints
from mode_ray.train.runs.checkpoint_schedule import CheckpointSchedule
from mode_ray.train.runs.checkpoint_writer import CheckpointWriter, report_without_checkpoint
from mode_ray.train.runs.progress_writer import ProgressWriter
from mode_ray.train.runs.rank_zero import RankZero
from mode_ray.train.runs.trackers import open_trackers
from mode_ray.train.runs.trial import TrialJob
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.rank import Rank


class Reporter:
    """Follows the training loop of one rank. As a context manager it closes the trackers, even after an error.

    Args:
        loop: The loop.
        samples: Samples of the whole run; no checkpoint is written after the last one.
        rank_zero: The work of rank 0; None on other ranks.
        agreement: Distributes rank 0's decisions; None if there is one rank.
        find_preemption_on_all_ranks: Returns what is known about a node of the run that is about to be preempted, the
            same on every rank, or None.
    """

    def __init__(
        self,
        loop: TrainLoop,
        samples: int,
        rank_zero: RankZero | None,
        agreement: Agreement | None,
        find_preemption_on_all_ranks: Callable[[], object] = ray.train.get_preemption_info,
    ) -> None:
        self._loop = loop
        self._samples = samples
        self._rank_zero = rank_zero
        self._agreement = agreement
        self._find_preemption_on_all_ranks = find_preemption_on_all_ranks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rank_zero is not None:
            self._rank_zero.trackers.close(failed=kind is not None)

    def log(self, point: Mapping[str, float]) -> None:
        """Record the newest logged point."""
        if self._rank_zero is not None:
            self._rank_zero.log(point)

    def after_step_on_all_ranks(self) -> None:
        """Write progress and a checkpoint if they are due. Collective: every rank calls it after every step."""
        samples = self._loop.state.samples_seen
        if samples >= self._samples:
            return
        wanted = Order.NOTHING if self._rank_zero is None else self._rank_zero.after_step(samples)
        order = wanted if self._agreement is None else self._agreement.exchange_on_all_ranks(wanted)
        if order == Order.CHECKPOINT:
            self.checkpoint_on_all_ranks()
        elif order == Order.ASK_FOR_PREEMPTION and self._find_preemption_on_all_ranks() is not None:
            self.checkpoint_on_all_ranks(preempted=True)

    def checkpoint_on_all_ranks(self, *, preempted: bool = False) -> None:
        """Write a checkpoint now. Collective: every rank calls it after the same step."""
        samples = self._loop.state.samples_seen
        snapshot = self._loop.gather_snapshot()
        if self._rank_zero is None:
            report_without_checkpoint(samples)
        else:
            self._rank_zero.write_checkpoint(snapshot, samples, preempted=preempted)

    def wait_on_all_ranks(self) -> None:
        """Wait until nothing is being written, and discard rank 0's last decision. Collective."""
        if self._agreement is not None:
            self._agreement.drop_on_all_ranks()
        if self._rank_zero is not None:
            self._rank_zero.checkpoints.wait()

    def finish_on_all_ranks(self) -> None:
        """Wait until nothing is being written, and write the final progress. Collective."""
        self.wait_on_all_ranks()
        if self._rank_zero is not None:
            self._rank_zero.write_last_progress(self._loop.state.samples_seen)


def open_reporter_on_all_ranks(job: TrialJob, loop: TrainLoop, checkpoints: Location, rank: Rank) -> Reporter:
    """The reporter of one rank. Collective: every rank creates one at the same time.

    Raises:
        UsageError: A tracker is not installed.
    """
    agreement = Agreement() if rank.world_size > 1 else None
    if rank.number > 0:
        return Reporter(loop, job.trial.samples, None, agreement)
    placement, seen, now = job.config.train.placement, loop.state.samples_seen, time.monotonic()
    rank_zero = RankZero(
        CheckpointSchedule(placement.checkpoint_interval_seconds, now, seen),
        CheckpointWriter(checkpoints, under_ray=placement.workers_per_run > 0),
        ProgressWriter(job.folder / PROGRESS_FILE, now),
        open_trackers(job.folder, job.trial.name, job.config.train, seen),
        rank.world_size,
    )
    return Reporter(loop, job.trial.samples, rank_zero, agreement)


def broadcast_newest_checkpoint(checkpoints: Location, rank: Rank) -> Location | None:
    """The newest complete checkpoint that rank 0 finds, or None. Collective: every rank calls it at the same time."""
    found = whole_checkpoints(checkpoints)[-1:] if rank.number == 0 else []
    name: str | None = ray.train.collective.broadcast_from_rank_zero(found[0].name if found else None)
    return None if name is None else checkpoints / name
