"""Writes the progress file of a run, which the driver and `mode-ray status` read, and finds a request to stop."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from mode_ray.run_directory import STOP_FILE
from mode_ray.storage import Location

INTERVAL_SECONDS = 2.0
_logger = logging.getLogger(__name__)


class ProgressWriter:
    """Writes the newest figures in a background thread, at most every two seconds.

    A write error is logged as a warning, and training continues. Times are seconds of a monotonic clock.

    Attributes:
        is_stop_requested: Whether the driver was found to stop; see `mode_ray.train.runs.stop`.
    """

    def __init__(self, file: Location, now: float) -> None:
        self.is_stop_requested = False
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
        self._writing = self._thread.submit(self._write, json.dumps(figures))

    def _write(self, figures: str) -> None:
        self._file.write_text(figures)
        self.is_stop_requested = self.is_stop_requested or (self._file.parent / STOP_FILE).exists()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None and (error := self._writing.exception()) is not None:
            _logger.warning("%s was not written: %s", self._file, error)
        self._writing = None
