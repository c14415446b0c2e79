"""Progress for people: plain lines, so that they read the same in a terminal, a file and a job's log.

Training runs, several at a time and for long, are a table that changes in place where the output is a terminal.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mode_ray.stage import Manifest, UnitRecord
from mode_ray.train.trial_status import TrialStatus

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

    @contextmanager
    def watching_trials(self) -> Iterator[Callable[[Mapping[str, TrialStatus]], None]]:
        """Gives what to call with all statuses again and again: a live table in a terminal, else plain lines."""
        if not self._console.is_terminal:
            yield self.trials
            return
        with Live(console=self._console, auto_refresh=False) as live:

            def show(statuses: Mapping[str, TrialStatus]) -> None:
                live.update(trials_table(statuses.values(), time.time()), refresh=True)

            yield show

    def trials(self, statuses: Mapping[str, TrialStatus]) -> None:
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
            f"{name} {status.samples_seen / status.samples:.0%} loss {status.loss:.3f}"
            for name, status in statuses.items()
            if status.state == "running" and status.loss is not None
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


def trials_table(statuses: Iterable[TrialStatus], now_unix_seconds: float) -> Table:
    """One line a training run."""
    table = Table(title="training runs")
    for column in ("run", "state"):
        table.add_column(column)
    for column in ("samples", "of", "samples/s", "loss", "left", "checkpoint", "launches", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("reason")
    for status in statuses:
        table.add_row(status.trial, status.state, *_trial_cells(status, now_unix_seconds), escape(status.reason or ""))
    return table


def _trial_cells(status: TrialStatus, now_unix_seconds: float) -> tuple[str, ...]:
    running = status.state == "running"
    written = status.checkpoint_unix_seconds
    return (
        f"{status.samples_seen:,}",
        f"{status.samples:,}",
        "" if status.samples_per_second is None or not running else f"{status.samples_per_second:,.0f}",
        "" if status.loss is None else f"{status.loss:.3f}",
        "" if status.eta_seconds is None else _duration(status.eta_seconds),
        "" if written is None or status.state == "finished" else f"{_duration(now_unix_seconds - written)} ago",
        str(status.launches),
        f"{status.seconds:.1f}",
    )


def _duration(seconds: float) -> str:
    """In the largest unit that leaves two digits or so."""
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
