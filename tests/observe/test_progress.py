"""The lines of a run: events at once, counts every few seconds, and text without markup."""

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from mode_ray.observe.progress import Progress, trials_table
from mode_ray.stages.manifest import Manifest, UnitRecord
from mode_ray.train.runs.status import TrialState, TrialStatus


class Screen:
    """A progress that prints into memory, with a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self._output = io.StringIO()
        self.progress = Progress(Console(file=self._output, width=40))

    def lines(self) -> list[str]:
        """What was printed since the last call."""
        text = self._output.getvalue()
        self._output.seek(0)
        self._output.truncate()
        return text.splitlines()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen(monkeypatch)
    made.progress.begin("embed", 4)
    made.lines()
    return made


def unit(error: str | None = None) -> UnitRecord:
    return UnitRecord(unit="a", source="a.tar", rows_out=0 if error else 1000, error=error)


def status(state: TrialState, reason: str | None = None) -> TrialStatus:
    return TrialStatus(trial="n2/00", state=state, samples=8000, reason=reason)


def test_units_are_counted_every_few_seconds_with_their_rate(screen: Screen) -> None:
    screen.now += 1
    screen.progress.unit(unit())
    assert screen.lines() == []
    screen.now += 3
    screen.progress.unit(unit())
    assert screen.lines() == ["[embed] 2/4 units, 2,000 rows, 500 rows/s"]


def test_a_unit_that_is_left_out_is_said_at_once_and_unbroken(screen: Screen) -> None:
    reason = "/data/[red]/a.tar: truncated tar (no end marker after 512 bytes); replace or remove it"
    screen.progress.unit(unit(reason))
    assert screen.lines() == [f"[embed] left out: {reason}"]


def test_units_of_an_earlier_invocation_count(screen: Screen) -> None:
    screen.progress.begin("assign", 10, done=7)
    assert screen.lines() == ["[assign] 7 of 10 units done before"]
    screen.now += 4
    screen.progress.unit(unit())
    assert screen.lines()[0].startswith("[assign] 8/10 units, 1,000 rows, 250 rows/s")


def test_a_change_of_a_trials_state_is_said_once(screen: Screen) -> None:
    for state, said in (("waiting", 0), ("running", 1), ("running", 0), ("finished", 1), ("finished", 0)):
        screen.progress.trials({"n2/00": status(state)})  # type: ignore[arg-type]
        assert len(screen.lines()) == said
    screen.progress.trials({"n2/00": status("failed", "the loss is nan")})
    assert screen.lines() == ["[embed] n2/00: failed (8,000 samples): the loss is nan"]


def lost(times: int) -> TrialStatus:
    by = "killed by Ray because its machine ran low on memory"
    return replace(status("running"), samples_seen=800, interruptions=times, interrupted_by=by)


def test_every_interruption_is_said_once_with_rays_reason(screen: Screen) -> None:
    screen.progress.trials({"n2/00": status("running")})
    screen.lines()
    for times, said in ((1, 1), (1, 0), (2, 1)):
        screen.progress.trials({"n2/00": lost(times)})
        lines = screen.lines()
        assert len(lines) == said
    assert lines == [
        "[embed] n2/00: interrupted (2 so far), resumes from 800 of 8,000 samples: killed by Ray because its machine "
        "ran low on memory"
    ]


def test_it_is_said_above_the_table_of_a_terminal_too() -> None:
    output = io.StringIO()
    progress = Progress(Console(file=output, force_terminal=True, width=160))
    with progress.watching_trials() as on_change:
        on_change({"n2/00": status("running")})
        on_change({"n2/00": lost(1)})
    assert "n2/00: interrupted (1 so far)" in output.getvalue()


def test_a_run_on_on_demand_machines_is_noted_below_the_table() -> None:
    output = io.StringIO()
    waited = replace(status("waiting"), on_demand=True)
    Console(file=output, width=160).print(trials_table([waited], 0.0))
    assert "n2/00: requests on-demand machines, because no spot machine came in time" in output.getvalue()


def test_running_trials_show_share_and_loss_now_and_then(screen: Screen) -> None:
    statuses = {"n2/00": replace(status("running"), samples_seen=2000, loss=1.5)}
    screen.progress.trials(statuses)
    screen.lines()
    screen.now += 11
    screen.progress.trials(statuses)
    assert screen.lines() == ["[embed] n2/00 25% loss 1.500"]
    screen.progress.trials(statuses)
    assert screen.lines() == []


def test_where_no_terminal_is_watched_trials_are_lines(screen: Screen) -> None:
    with screen.progress.watching_trials() as on_change:
        on_change({"n2/00": status("running")})
    assert screen.lines() == ["[embed] n2/00: running (8,000 samples)"]


def test_in_a_terminal_they_are_one_table_that_changes_in_place() -> None:
    output = io.StringIO()
    progress = Progress(Console(file=output, force_terminal=True, width=160))
    with progress.watching_trials() as on_change:
        on_change({"n2/00": replace(status("running"), samples_seen=2000, loss=1.5)})
        on_change({"n2/00": replace(status("running"), samples_seen=4000, loss=1.25)})
        progress.say("a line beside it")
    printed = output.getvalue()
    assert "50%" in printed
    assert "a line beside it" in printed
    assert "\x1b[1A" in printed  # the cursor went up, to draw over the first table


def test_the_end_sums_up_what_was_refused_and_left_out(screen: Screen) -> None:
    screen.progress.end(
        Manifest(
            stage="embed",
            config_hash="",
            fields={},
            units=4,
            rows_in=1500,
            rows_out=1400,
            refused={"empty": 60, "too long": 40},
            quarantined={"b.tar": "truncated"},
            content_hash="",
            seconds=2.25,
            attempts=1,
            summary={},
            versions={},
        )
    )
    assert screen.lines() == [
        "[embed] done: 1,400 rows of 1,500, 100 refused, 1 shards left out, 2.2 s",
        "[embed]   refused 60: empty",
        "[embed]   refused 40: too long",
    ]
