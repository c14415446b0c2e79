"""Watch a run from its directory until it is done, on any machine that can read it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from mode_ray.observe.activity import inactivity
from mode_ray.observe.progress import trials_table
from mode_ray.observe.status import StageView, has_ended, look_at_stage, stages_of, stages_table
from mode_ray.run_directory import MANIFEST, RUN_CONFIG, STAGE_DIRECTORIES, STAGE_NAMES, require_run
from mode_ray.storage import Location
from mode_ray.util.tables import duration

# Listing 250,000 outputs takes long, so listings take at most a tenth of the time.
_PAUSE_PER_LOOK = 9.0


class Watch:
    """Reads the progress of a run repeatedly.

    Args:
        run: The run directory.
        until: The last stage to wait for.
        stall_seconds: Time without new output after which a stall is reported.
        clock: Returns the current unix time in seconds.
    """

    def __init__(
        self, run: Location, until: str, stall_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.run = run
        self._until = until
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._done: dict[str, StageView] = {}
        self.views: Sequence[StageView] = ()

    def look(self) -> None:
        """Read the progress of the stages that were not done before."""
        views: list[StageView] = []
        for name in self._names():
            if name not in self._done and all(view.state == "done" for view in views):
                view = look_at_stage(self.run, name, self._stall_seconds, self._clock())
                if view.state == "done":
                    self._done[name] = view
            else:
                view = self._done.get(name) or StageView(name=name, state="absent")
            views.append(view)
        self.views = views

    @property
    def at_work(self) -> StageView | None:
        """The first stage that is not done, or None when the run is."""
        return next((view for view in self.views if view.state != "done"), None)

    def stall(self) -> str | None:
        """One sentence if nobody seems to work on the current stage, or None."""
        view = self.at_work
        if view is None:
            return None
        found = view.inactivity
        if view.state == "absent":
            newest = self._previous_end(view.name)
            found = inactivity(self.run, view.name, newest, self._clock(), self._stall_seconds)
        return None if found is None else found.reason

    def line(self) -> str:
        """The progress of the current stage in one line."""
        view = self.at_work
        if view is None:
            return "done"
        if view.state == "absent":
            return f"[{view.name}] has not begun"
        left = "" if view.eta_seconds is None else f", about {duration(view.eta_seconds)} left"
        return f"[{view.name}] {view.done:,} of {view.units:,} units{left}"

    def _names(self) -> list[str]:
        """The stages to wait for; an optional one only once it has begun, unless it is the last."""
        wanted = STAGE_NAMES[: STAGE_NAMES.index(self._until) + 1]
        there = stages_of(self.run)
        return [name for name in wanted if name in there or name == self._until]

    def _previous_end(self, name: str) -> float:
        """When the previous stage ended; 0 if there is none or the storage has no times."""
        names = self._names()
        before = names[: names.index(name)]
        place = self.run / STAGE_DIRECTORIES[before[-1]] / MANIFEST if before else self.run / RUN_CONFIG
        entry = place.entry()
        return 0.0 if entry is None else entry.modified_unix_seconds


def watch_run(watch: Watch, console: Console, interval_seconds: float, sleep: Callable[[float], None]) -> None:
    """Show a run until it is done: a table updated in place in a terminal, else a line for each change.

    The pause between two updates is at least `interval_seconds`; `sleep` waits for a number of seconds.
    """
    with _screen(watch, console) as show:
        while True:
            began = time.monotonic()
            watch.look()
            show()
            if watch.at_work is None:
                return
            sleep(max(interval_seconds, _PAUSE_PER_LOOK * (time.monotonic() - began)))


def open_watch(run: Location, until: str, stall_seconds: float) -> Watch:
    """A watch of a run; raises `UsageError` if the directory has none."""
    require_run(run)
    return Watch(run, until, stall_seconds)


@contextmanager
def _screen(watch: Watch, console: Console) -> Iterator[Callable[[], None]]:
    said: dict[str, str | None] = {}

    def say(kind: str, text: str | None) -> None:
        # The duration in the sentence grows, so it is printed once per stage until there is new output.
        about = text if text is None or kind == "line" else text.split(":", 1)[0]
        if text is not None and said.get(kind) != about:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        said[kind] = about

    def lines() -> None:
        say("line", watch.line())
        say("stall", watch.stall())

    if not console.is_terminal:
        yield lines
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda: live.update(_tables(watch), refresh=True)


def _tables(watch: Watch) -> RenderableType:
    view = watch.at_work
    parts: list[RenderableType] = [stages_table(watch.run, watch.views)]
    if view is not None and view.trials:
        parts.append(trials_table(view.trials, time.time(), ended=has_ended(view)))
    if view is not None and view.inactivity is None and (stall := watch.stall()) is not None:
        parts.append(Text(stall))  # of a stage that has not begun: the table has no sentence about it
    return Group(*parts)
