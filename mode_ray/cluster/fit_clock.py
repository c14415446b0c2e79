"""Measures the parts of a fit. The cluster stage's manifest stores the figures for `mode-ray plan`."""

import time
from typing import Literal

SECONDS_BY_PART = "seconds_by_part"
"""Key of the figures in the manifest's summary."""

FitPart = Literal["read", "start", "iterations", "last_prices", "coarse"]


class FitClock:
    """Adds up the time of each part of a fit.

    Attributes:
        seconds: Wall time by part. `read`: reading the sample; missing if actors read it. `start`: duplicates, the
            first centers and the first iteration; 0 if a resumed fit had no iteration left. `iterations`: the other
            iterations. `last_prices`: the passes over all rows after the last iteration. `coarse`: the coarse maps and
            the fit of the temperatures.
        iterations: Number of iterations in the time of `iterations`.
    """

    def __init__(self) -> None:
        self.seconds: dict[FitPart, float] = {"start": 0.0, "iterations": 0.0, "last_prices": 0.0, "coarse": 0.0}
        self._started = False
        self.iterations = 0
        self._last = time.monotonic()

    def ended(self, part: FitPart) -> None:
        """Add the time since the last call to this part."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def iteration_ended(self) -> None:
        """Add the time since the last call to the iterations, or to the start if it is the first iteration."""
        if not self._started:
            self._started = True
            self.ended("start")
            return
        self.ended("iterations")
        self.iterations += 1

    def figures(self) -> dict[str, float]:
        """Seconds by part, and the number of timed iterations, for the manifest."""
        return {**{part: round(seconds, 4) for part, seconds in self.seconds.items()}, "timed": self.iterations}
