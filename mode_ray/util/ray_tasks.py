"""Results of Ray tasks; our own errors are raised as themselves, not wrapped in Ray's."""

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
