"""Detects a model that answers no calls although calls keep arriving."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_IDLE_SECONDS = 10.0


class StuckCalls:
    """Watches calls, some of which may be cancelled by their callers.

    A cancelled call alone means little: the client may have left. The model is stuck if calls arrived for a long time,
    each soon after the one before, and none was answered.

    Args:
        limit_seconds: How long.
        clock: Returns monotonic seconds.
    """

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_seconds = limit_seconds
        self._clock = clock
        self._in_flight = 0
        self._unanswered_since: float | None = None
        self._last_ended = clock()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wraps one call; a call that ends with an exception counts as not answered."""
        now = self._clock()
        pause = not self._in_flight and now - self._last_ended > _IDLE_SECONDS
        if self._unanswered_since is None or pause:
            self._unanswered_since = now
        self._in_flight += 1
        try:
            yield
            self._unanswered_since = self._clock() if self._in_flight > 1 else None
        finally:
            self._in_flight -= 1
            self._last_ended = self._clock()

    @property
    def stuck(self) -> bool:
        """Whether no call was answered for longer than the limit."""
        if self._unanswered_since is None:
            return False
        until = self._clock() if self._in_flight else self._last_ended
        return until - self._unanswered_since > self._limit_seconds
