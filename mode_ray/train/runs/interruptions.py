"""Losses of a run's workers: noted in the run's directory with Ray's reason, and counted.

Ray Train reports a loss to its controller only. The controller writes a note, and the scheduler shows it. Ray Train
restarts the workers after any number of failures; this module ends a run that fails too often without progress.
"""

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from mode_ray.errors import TrainingError
from mode_ray.run_directory import ERROR_FILE, INTERRUPTIONS_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.failure_budget import FailureBudget
from mode_ray.train.runs.trial import read_error

PREEMPTED = "preempted"
"""Field of a report to Ray Train: its checkpoint was written because a machine of the run is about to be preempted."""
_logger = logging.getLogger(__name__)
_OUT_OF_MEMORY = "running low on memory"
_USED_MEMORY = re.compile(r"was ([\d.]+GB) used / ([\d.]+GB) limit")
_EXIT_DETAIL = re.compile(r"Worker exit detail: (.+)")
_REASON_CHARACTERS = 300


class InterruptionNotes(UserCallback):
    """Notes each loss of workers, and ends the run when its failures exceed the budget; called in the controller.

    Args:
        folder: The run's directory.
        newest_checkpoint: Returns the samples of the newest complete checkpoint.
        max_failures: Failures without a newer checkpoint that are repaired; -1 for any number.
    """

    def __init__(self, folder: Location, newest_checkpoint: Callable[[], int], max_failures: int) -> None:
        self._folder = folder
        self._newest_checkpoint = newest_checkpoint
        self._max_failures = max_failures
        self._budget = FailureBudget(max_failures)
        self._preempted: set[str | None] = set()
        self._announced = False

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ANN401, ARG002
        """Note a preemption that was announced. Its workers may end without an exception."""
        if metrics[0].get(PREEMPTED):
            self._note(f"a machine is preempted; checkpoint at {metrics[0]['samples']:,} samples")
            self._announced = True

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401, ARG002
        """Note the first rank that was lost. A note that cannot be written is logged, and training resumes.

        A preempted machine is noted and not counted. Ray Train reports its workers again at every poll until it
        restarts the group.

        Raises:
            TrainingError: A restart is of no use: a worker wrote a permanent error, or the run failed too often
                without a newer checkpoint. Ray Train then ends the run.
        """
        permanent = read_error(self._folder)
        if permanent is not None:
            raise TrainingError(permanent)
        preempted = {rank: actor for rank, error in worker_exceptions.items() if (actor := _preempted_actor(error))}
        if preempted:
            if set(preempted.values()) <= self._preempted:
                return
            self._preempted |= set(preempted.values())
            if not self._announced:
                self._note(f"worker {min(preempted)}: its machine was preempted")
            self._announced = False
            return
        rank, error = min(worker_exceptions.items())
        reason = f"worker {rank}: {ray_reason(error)}"
        self._note(reason)
        if self._may_continue():
            return
        message = (
            f"{self._budget.failures} failures without a newer checkpoint, more than "
            f"train.placement.max_failures={self._max_failures}; the last: {reason}"
        )
        (self._folder / ERROR_FILE).write_text(message)
        raise TrainingError(message)

    def _may_continue(self) -> bool:
        try:
            newest = self._newest_checkpoint()
        except OSError as failure:
            _logger.warning("%s: cannot list checkpoints, so this failure is not counted: %s", self._folder, failure)
            return True
        return self._budget.failed(newest)

    def _note(self, note: str) -> None:
        try:
            notes = [*read_interruptions(self._folder), note]
            (self._folder / INTERRUPTIONS_FILE).write_text(json.dumps(notes))
        except OSError as failure:
            _logger.warning("%s: the loss of a worker was not noted: %s", self._folder, failure)


def _preempted_actor(error: Exception) -> str | None:
    """The id of the worker's actor if Ray ended it because its machine was preempted, else None."""
    lost = getattr(error, "health_check_failure", error)
    if isinstance(lost, RayActorError) and lost.preempted:
        return str(lost.actor_id)
    return None


def read_interruptions(folder: Location) -> list[str]:
    """The reasons of the losses in the current launch of a run, the newest last."""
    file = folder / INTERRUPTIONS_FILE
    notes: list[str] = json.loads(file.read_text()) if file.exists() else []
    return notes


def ray_reason(error: BaseException) -> str:
    """Why Ray lost a process, in one line; for an exception of our own code its message without stack trace."""
    # Ray Train wraps the error of a worker that does not answer.
    text = str(getattr(error, "health_check_failure", error))
    if _OUT_OF_MEMORY in text:
        used = _USED_MEMORY.search(text)
        amount = f" ({used[1]} of {used[2]} used)" if used else ""
        return (
            f"killed by Ray because its machine ran low on memory{amount}; lower train.batch_size, set "
            "train.placement.micro_batch_size, or lower train.placement.concurrent_runs"
        )
    detail = _EXIT_DETAIL.search(text)
    if detail is not None:
        return detail[1].strip()[:_REASON_CHARACTERS]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_REASON_CHARACTERS] if lines else type(error).__name__
