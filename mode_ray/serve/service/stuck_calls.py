"""Whether a model still finishes anything: calls that keep coming while none is answered."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_IDLE_SECONDS = 10.0


class StuckCalls:
    """Watches calls, of which some may be given up by their callers.

    Calls given up say little alone: a client may have left. What tells is that calls came, each soon after the last,
    for a long time, and none was answered.

    Args:
        limit_seconds: For how long.
        clock: Seconds, monotonic.
    """

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_seconds = limit_seconds
        self._clock = clock
        self._in_flight = 0
        self._unanswered_since: float | None = None
        self._last_ended = clock()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around one call; leaving it by an exception is no answer."""
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
        """Whether calls have gone unanswered for longer than the limit."""
        if self._unanswered_since is None:
            return False
        until = self._clock() if self._in_flight else self._last_ended
        return until - self._unanswered_since > self._limit_seconds
