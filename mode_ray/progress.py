"""Progress for people: plain lines, so that they read the same in a terminal, a file and a job's log."""

import time
from collections.abc import Mapping

from rich.console import Console, RenderableType

from mode_ray.stage import Manifest, UnitRecord
from mode_ray.train.scheduler import TrialStatus

_INTERVAL_SECONDS = 3.0
_TRIALS_INTERVAL_SECONDS = 10.0


class Progress:
    """Prints what a stage does, at most every few seconds.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._began = self._last = time.monotonic()
        self._units = self._done = self._rows = 0
        self._states: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """Print a table."""
        self._console.print(table)

    def work(self, what: str, done: int, total: int) -> None:
        """Some lengthy work before the stages is `done` of `total` steps far."""
        now = time.monotonic()
        if now - self._last >= _INTERVAL_SECONDS:
            self._last = now
            self.say(f"[{what}] {done:,} of {total:,}")

    def begin(self, stage: str, units: int, done: int = 0) -> None:
        """A stage begins, with some of its units done by an earlier invocation."""
        self._stage, self._units, self._done, self._rows = stage, units, done, 0
        self._began = self._last = time.monotonic()
        self._states = {}
        self.say(f"[{stage}] {done} of {units} units done before" if done else f"[{stage}] begins")

    def unit(self, record: UnitRecord) -> None:
        """A unit is done, or quarantined."""
        self._done += 1
        self._rows += record.rows_out
        if record.error is not None:
            self.say(f"[{self._stage}] left out: {record.error}")
        now = time.monotonic()
        if now - self._last >= _INTERVAL_SECONDS:
            self._last = now
            rate = self._rows / (now - self._began)
            self.say(f"[{self._stage}] {self._done}/{self._units} units, {self._rows:,} rows, {rate:,.0f} rows/s")

    def trials(self, statuses: Mapping[str, TrialStatus], points: Mapping[str, Mapping[str, float]]) -> None:
        """Training runs: every change of state at once, samples and loss of the running ones now and then."""
        for name, status in statuses.items():
            if status.state != self._states.get(name, "waiting"):
                reason = f": {status.reason}" if status.reason else ""
                self.say(f"[{self._stage}] {name}: {status.state} ({status.samples:,} samples){reason}")
            self._states[name] = status.state
        now = time.monotonic()
        if now - self._last < _TRIALS_INTERVAL_SECONDS:
            return
        self._last = now
        running = [
            f"{name} {point['samples'] / statuses[name].samples:.0%} loss {point['loss']:.3f}"
            for name, point in points.items()
            if statuses[name].state == "running"
        ]
        if running:
            self.say(f"[{self._stage}] {', '.join(running)}")

    def end(self, manifest: Manifest) -> None:
        """A stage is done."""
        refused = sum(manifest.refused.values())
        left_out = f", {len(manifest.quarantined)} shards left out" if manifest.quarantined else ""
        self.say(
            f"[{manifest.stage}] done: {manifest.rows_out:,} rows of {manifest.rows_in:,}, "
            f"{refused:,} refused{left_out}, {manifest.seconds:.1f} s"
        )
        for reason, count in manifest.refused.items():
            self.say(f"[{manifest.stage}]   refused {count:,}: {reason}")
