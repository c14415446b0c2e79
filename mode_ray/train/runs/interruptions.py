"""Losses of a run's workers, which Ray Train recovers from: noted in the run's directory with Ray's reason.

Ray Train reports a loss to its controller only. The controller writes a note, and the scheduler shows it.
"""

import json
import logging
import re
from typing import Any

from ray.train import UserCallback

from mode_ray.run_directory import INTERRUPTIONS_FILE
from mode_ray.storage import Location

_logger = logging.getLogger(__name__)
_OUT_OF_MEMORY = "running low on memory"
_USED_MEMORY = re.compile(r"was ([\d.]+GB) used / ([\d.]+GB) limit")
_EXIT_DETAIL = re.compile(r"Worker exit detail: (.+)")
_REASON_CHARACTERS = 300


class InterruptionNotes(UserCallback):
    """Notes each loss of workers; called in the controller.

    Args:
        folder: The run's directory.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401, ARG002
        """Note the first rank that was lost. A note that cannot be written is logged, and training resumes."""
        rank, error = min(worker_exceptions.items())
        try:
            notes = [*read_interruptions(self._folder), f"worker {rank}: {ray_reason(error)}"]
            (self._folder / INTERRUPTIONS_FILE).write_text(json.dumps(notes))
        except OSError as failure:
            _logger.warning("%s: the loss of a worker was not noted: %s", self._folder, failure)


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
