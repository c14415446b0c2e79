"""Results of Ray tasks, and their cancellation; our own errors are raised as themselves, not wrapped in Ray's."""

from collections.abc import Sequence
from typing import Any

import ray

from mode_ray.errors import ModeRayError


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
    """Stop tasks that have no result yet, by force.

    A task whose result has just arrived must not be cancelled: Ray 2.60 then aborts the whole driver process
    (`Check failed` in `TaskManager::CompletePendingTask`).
    """
    if references:
        _, unfinished = ray.wait(list(references), num_returns=len(references), timeout=0)
        for reference in unfinished:
            ray.cancel(reference, force=True)
