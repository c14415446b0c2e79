"""Many texts are encoded in slices, so that the requests of several clients take turns."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

_FIRST, _LEAST, _MOST = 16, 4, 256

Rows = npt.NDArray[np.float32]


class Turns:
    """Finds out how many texts a model encodes in one turn.

    A slice that took less than half a turn doubles the size of the next ones; one that took longer than a turn halves
    it. So the size depends on the model and on the machine, and a request waits for at most one turn of every other
    request.

    Args:
        seconds: Duration of a turn.
        clock: Returns monotonic seconds.
    """

    def __init__(self, seconds: float = 0.2, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = _FIRST
        self._seconds = seconds
        self._clock = clock

    def encode(self, function: Callable[[Sequence[str]], Rows], texts: Sequence[str]) -> Rows:
        """Encode one slice, and adapt the size of the next ones."""
        began = self._clock()
        rows = function(texts)
        self.took(len(texts), self._clock() - began)
        return rows

    def took(self, texts: int, seconds: float) -> None:
        """Adapt the size of the next slices to how long a slice took."""
        if seconds > self._seconds:
            self.size = max(_LEAST, min(self.size, texts) // 2)
        elif texts >= self.size and seconds < self._seconds / 2:
            self.size = min(_MOST, 2 * self.size)
