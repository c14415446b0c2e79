"""Progress of a run as plain lines, the same in a terminal, a file and the log of a job.

In a terminal, training runs are a table that is updated in place.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from mode_ray.stages.manifest import Manifest, UnitRecord
from mode_ray.train.runs.status import TrialStatus, at_checkpoint
from mode_ray.util.tables import WideTable, duration, short_count

_INTERVAL_SECONDS = 3.0
_TRIALS_INTERVAL_SECONDS = 10.0

FitReport = Mapping[str, Any]
"""An `IterationReport` of the fine clustering, as stored in its file."""


class ProgressObserver(Protocol):
    """Receives every event of `Progress`; implemented by the metrics."""

    def begin(self, stage: str, units: int, done: int, actors: int) -> None:
        """A stage begins."""

    def unit(self, record: UnitRecord) -> None:
        """A unit was finished or quarantined."""

    def iteration(self, report: FitReport) -> None:
        """The fine clustering finished an iteration."""

    def trials(self, statuses: Mapping[str, TrialStatus]) -> None:
        """The current state of all training runs; called repeatedly."""

    def routing(self, entropy_by_task: Mapping[str, float]) -> None:
        """The entropy of the routing weights of each evaluated task."""

    def end(self, manifest: Manifest) -> None:
        """A stage is done."""


class Progress:
    """Prints the progress of a stage every few seconds, and passes every event to an observer.

    Args:
        console: Where lines and tables are printed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logger: logging.Logger | None = None
        self._run = ""
        self._observe: Callable[[], ProgressObserver] | None = None
        self._observer: ProgressObserver | None = None
        self._stage = ""
        self._began = self._last = time.monotonic()
        self._units = self._done = self._rows = 0
        self._states: dict[str, str] = {}
        self._interruptions: dict[str, int] = {}

    def follow(
        self, run: str, logger: logging.Logger | None = None, observe: Callable[[], ProgressObserver] | None = None
    ) -> None:
        """Set the run that is reported. A logger receives the lines instead of the console.

        `observe` creates the observer when the first stage begins.
        """
        self._run, self._logger, self._observe = run, logger, observe

    def say(self, text: str, *, work_unit: str = "", expert: str = "") -> None:
        """Print or log one line, with the shard or expert that it is about."""
        if self._logger is None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        context = {"run": self._run, "stage": self._stage, "shard": work_unit, "expert": expert}
        self._logger.info("%s", text, extra=context)

    def show(self, table: RenderableType) -> None:
        """Print a table."""
        self._console.print(table)

    def work(self, what: str, done: int, total: int) -> None:
        """Report work before the first stage: `done` of `total` steps."""
        now = time.monotonic()
        if now - self._last >= _INTERVAL_SECONDS:
            self._last = now
            self.say(f"[{what}] {done:,} of {total:,}")

    def begin(self, stage: str, units: int, done: int = 0, actors: int = 0) -> None:
        """A stage begins with at most `actors` actors; an earlier invocation finished `done` units."""
        if self._observer is None and self._observe is not None:
            self._observer = self._observe()
        if self._observer is not None:
            self._observer.begin(stage, units, done, actors)
        self._stage, self._units, self._done, self._rows = stage, units, done, 0
        self._began = self._last = time.monotonic()
        self._states, self._interruptions = {}, {}
        self.say(f"[{stage}] {done} of {units} units done before" if done else f"[{stage}] begins")

    def unit(self, record: UnitRecord) -> None:
        """A unit was finished or quarantined."""
        self._done += 1
        self._rows += record.rows_out
        if self._observer is not None:
            self._observer.unit(record)
        if record.error is not None:
            self.say(f"[{self._stage}] left out: {record.error}", work_unit=record.source)
        now = time.monotonic()
        if now - self._last >= _INTERVAL_SECONDS:
            self._last = now
            rate = self._rows / (now - self._began)
            self.say(f"[{self._stage}] {self._done}/{self._units} units, {self._rows:,} rows, {rate:,.0f} rows/s")

    def iteration(self, report: FitReport, most: int) -> None:
        """The fine clustering finished one of at most `most` iterations."""
        if self._observer is not None:
            self._observer.iteration(report)
        self.say(
            f"[{self._stage}] iteration {report['iteration']}/{most}: "
            f"inertia {report['inertia']:,.1f}, largest cluster {report['max_over_mean']:.2f} x mean"
        )

    def routing(self, entropy_by_task: Mapping[str, float]) -> None:
        """How sure the routing of each evaluated task is; the report shows it to people."""
        if self._observer is not None:
            self._observer.routing(entropy_by_task)

    @contextmanager
    def watching_trials(self) -> Iterator[Callable[[Mapping[str, TrialStatus]], None]]:
        """Yields a function that shows all statuses: as a live table in a terminal, else as plain lines."""
        if not self._console.is_terminal or self._logger is not None:
            yield self.trials
            return
        with Live(console=self._console, auto_refresh=False) as live:

            def show(statuses: Mapping[str, TrialStatus]) -> None:
                if self._observer is not None:
                    self._observer.trials(statuses)
                self._say_interruptions(statuses)
                live.update(trials_table(statuses.values(), time.time()), refresh=True)

            yield show

    def trials(self, statuses: Mapping[str, TrialStatus]) -> None:
        """Report changes of state at once, and samples and loss of the running training runs every few seconds."""
        if self._observer is not None:
            self._observer.trials(statuses)
        self._say_interruptions(statuses)
        for name, status in statuses.items():
            if status.state != self._states.get(name, "waiting"):
                reason = f": {status.reason}" if status.reason else ""
                self.say(f"[{self._stage}] {name}: {status.state} ({status.samples:,} samples){reason}", expert=name)
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

    def _say_interruptions(self, statuses: Mapping[str, TrialStatus]) -> None:
        """Report every loss of workers or of a launch once, with Ray's reason."""
        for name, status in statuses.items():
            if status.interruptions > self._interruptions.setdefault(name, 0):
                self._interruptions[name] = status.interruptions
                resumes = f"resumes from {status.samples_seen:,} of {status.samples:,} samples"
                lost = f"interrupted ({status.interruptions} so far), {resumes}: {status.interrupted_by}"
                self.say(f"[{self._stage}] {name}: {lost}", expert=name)

    def end(self, manifest: Manifest) -> None:
        """A stage is done."""
        if self._observer is not None:
            self._observer.end(manifest)
        refused = sum(manifest.refused.values())
        left_out = f", {len(manifest.quarantined)} shards left out" if manifest.quarantined else ""
        self.say(
            f"[{manifest.stage}] done: {manifest.rows_out:,} rows of {manifest.rows_in:,}, "
            f"{refused:,} refused{left_out}, {manifest.seconds:.1f} s"
        )
        for reason, count in manifest.refused.items():
            self.say(f"[{manifest.stage}]   refused {count:,}: {reason}")


def trials_table(statuses: Iterable[TrialStatus], now_unix_seconds: float, *, ended: bool = False) -> Group:
    """One row per training run, and below the table a note for each that was interrupted, relaunched or failed.

    If the driver has `ended`, runs are shown as stopped that were running.
    """
    headings = ("run", "state", "samples", "seen", "per s", "loss", "saved", "time")
    table, notes = WideTable("training runs", *headings, words=2), []
    for status in statuses:
        is_stopped = ended and status.state == "running"
        shown = at_checkpoint(status) if is_stopped else status
        state = "stopped" if is_stopped else status.state
        table.add_row(status.trial, state, *_trial_cells(shown, now_unix_seconds))
        note = [f"launched {status.launches} times"] if status.launches > 1 else []
        if status.on_demand and status.state != "finished":
            note.append("requests on-demand machines, because no spot machine came in time")
        if status.interrupted_by is not None and status.state != "finished":
            note.append(f"interrupted {status.interruptions} times, last: {status.interrupted_by}")
        note += [status.reason] if status.reason else []
        if note:
            notes.append(Text(f"{status.trial}: {'; '.join(note)}"))
    return Group(table, *notes)


def _trial_cells(status: TrialStatus, now_unix_seconds: float) -> tuple[str, ...]:
    running, saved = status.state == "running", status.checkpoint_unix_seconds
    left = running and status.eta_seconds is not None
    return (
        short_count(status.samples),
        f"{status.samples_seen / status.samples:.0%}" if status.samples else "",
        "" if status.samples_per_second is None or not running else short_count(status.samples_per_second),
        "" if status.loss is None else f"{status.loss:.3f}",
        "" if saved is None or status.state == "finished" else f"{duration(now_unix_seconds - saved)} ago",
        f"{duration(status.eta_seconds or 0.0)} left" if left else duration(status.seconds) if status.seconds else "",
    )
