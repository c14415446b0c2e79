"""Results of Ray tasks, and their cancellation; our own errors are raised as themselves, not wrapped in Ray's."""

import warnings
from collections.abc import Sequence
from typing import Any

import ray

from mode_ray.errors import ModeRayError

_CANCEL_TRIES = 20
_CANCEL_PAUSE_SECONDS = 0.5


def task_result(reference: "ray.ObjectRef[Any]") -> Any:  # noqa: ANN401 - each task's own
    """Wait for a task's result.

    Raises:
        ModeRayError: The task raised it.
        RayTaskError: The task raised anything else: a defect, shown with its stack trace.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ModeRayError):
            raise error.cause from None
        raise


def process_kept(if_small: bool) -> dict[str, Any]:
    """Options of a task: Ray keeps its process for the next task, or ends it because it is too large to idle.

    Args:
        if_small: Whether the task leaves a small process. A kept process has imported what the next task needs.
    """
    return {} if if_small else {"max_calls": 1}


def cancel_unfinished(references: "Sequence[ray.ObjectRef[Any]]") -> None:
    """Stop tasks that have no result yet, by force, and wait until they have ended.

    A task whose result has just arrived must not be cancelled: Ray 2.60 then aborts the whole driver process
    (`Check failed` in `TaskManager::CompletePendingTask`). A task that is just being started can miss the request:
    it then runs to its end (12 % of the tasks that were cancelled right after their submission). Requests are
    therefore repeated. A task whose machine does not answer is left to Ray after `_CANCEL_TRIES`, with a warning.
    """
    if not references:
        return
    _, unfinished = ray.wait(list(references), num_returns=len(references), timeout=0)
    for _ in range(_CANCEL_TRIES):
        if not unfinished:
            return
        for reference in unfinished:
            ray.cancel(reference, force=True)
        _, unfinished = ray.wait(unfinished, num_returns=len(unfinished), timeout=_CANCEL_PAUSE_SECONDS)
    if unfinished:
        warnings.warn(f"{len(unfinished)} cancelled Ray tasks have not ended yet", stacklevel=2)
