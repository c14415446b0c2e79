"""Writes the progress file of a run, which the driver and `mode-ray status` read."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from mode_ray.storage import Location

INTERVAL_SECONDS = 2.0
_logger = logging.getLogger(__name__)


class ProgressWriter:
    """Writes the newest figures in a background thread, at most every two seconds.

    A write error is logged as a warning, and training continues. Times are seconds of a monotonic clock.
    """

    def __init__(self, file: Location, now: float) -> None:
        self._file = file
        self._written_at = now
        self._thread = ThreadPoolExecutor(1, "progress")
        self._writing: Future[None] | None = None

    def is_due(self, now: float) -> bool:
        """Whether the interval is over and nothing is being written."""
        is_idle = self._writing is None or self._writing.done()
        return is_idle and now - self._written_at >= INTERVAL_SECONDS

    def write(self, figures: Mapping[str, float], now: float) -> None:
        """Wait for the previous write, and begin this one."""
        self.wait()
        self._written_at = now
        self._writing = self._thread.submit(self._file.write_text, json.dumps(figures))

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None and (error := self._writing.exception()) is not None:
            _logger.warning("%s was not written: %s", self._file, error)
        self._writing = None
