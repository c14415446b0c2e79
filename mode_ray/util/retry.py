"""Trying a step again after an error that may pass."""

import time
from collections.abc import Callable
from typing import TypeVar

FIRST_PAUSE_SECONDS = 0.5
_Result = TypeVar("_Result")


def retry(
    step: Callable[[], _Result],
    retries: int,
    *,
    on: type[Exception] = OSError,
    never_on: tuple[type[Exception], ...] = (),
    first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> _Result:
    """Call a step until it returns; pauses between the calls double each time.

    Args:
        step: What to do.
        retries: Further calls after the first.
        on: Errors after which the step is called again; all others are raised at once.
        never_on: Kinds of `on` that are raised at once all the same.
        first_pause_seconds: Pause after the first error.
        sleep: Waits for so many seconds.

    Raises:
        Exception: What the last call raised.
    """
    for attempt in range(retries):
        try:
            return step()
        except never_on:
            raise
        except on:
            sleep(first_pause_seconds * 2**attempt)
    return step()
