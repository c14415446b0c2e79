"""A watch reports a run that progresses, stalls or is done, from the files in its directory."""

import io
import json
import os
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from mode_ray.cli import main
from mode_ray.errors import UsageError
from mode_ray.observe.status import look_at_stage, training_eta_seconds, units_eta_seconds
from mode_ray.observe.watch import Watch, open_watch, watch_run
from mode_ray.run_directory import LEASE_FILE, STATUS_FILE
from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.storage import Location
from mode_ray.train.runs.status import TrialStatus

NOW = 1_700_000_000.0
STALL_SECONDS = 600.0


@pytest.fixture
def run(tmp_path: Path) -> Location:
    """A run whose embed stage wrote three of eleven units, a minute between them, the last just now."""
    location = Location(str(tmp_path / "run"))
    (location / "config.yaml").write_text("run: x\n")
    stage = Stage("embed", location / "embeddings", {})
    stage.begin(11)
    for number in range(3):
        write_unit(stage, f"u{number}", NOW - 120 + 60 * number)
    touch(location / "embeddings" / "started.json", NOW - 180)
    return location


def touch(location: Location, moment: float) -> None:
    os.utime(location.path, (moment, moment))


def write_unit(stage: Stage, unit: str, moment: float) -> None:
    stage.write_unit(pa.table({"row": [1]}), UnitRecord(unit=unit, source=f"{unit}.tar", rows_in=1, rows_out=1))
    touch(stage.output(unit), moment)


def finish(run: Location, name: str, directory: str) -> None:
    stage = Stage(name, run / directory, {})
    stage.begin(1)
    stage.finish([UnitRecord(unit="a", source="a")], {})


def begin_training(run: Location, *statuses: TrialStatus) -> None:
    for name, directory in (("embed", "embeddings"), ("cluster", "clusters"), ("assign", "assignments")):
        finish(run, name, directory)
    Stage("train", run / "experts", {}).begin(len(statuses))
    touch(run / "experts" / "started.json", NOW - 5000)
    for status in statuses:
        file = run / "experts" / status.trial / STATUS_FILE
        file.write_text(json.dumps(asdict(status)))
        touch(file, NOW - 1200)


def looked(run: Location, now: float = NOW, until: str = "evaluate") -> Watch:
    watch = Watch(run, until, STALL_SECONDS, lambda: now)
    watch.look()
    return watch


class TestTimeLeft:
    def test_units_are_made_at_the_speed_of_the_newest(self) -> None:
        assert units_eta_seconds([0.0, 10.0, 20.0], units=8) == 50.0

    def test_what_is_older_than_ten_minutes_does_not_count(self) -> None:
        assert units_eta_seconds([0.0, 50_000.0, 50_100.0], units=4) == 100.0

    @pytest.mark.parametrize("written", [[], [5.0], [5.0, 5.0]])
    def test_without_two_moments_it_is_unknown(self, written: list[float]) -> None:
        assert units_eta_seconds(written, 10) is None

    def test_runs_that_wait_are_trained_at_the_speed_of_those_that_run(self) -> None:
        running = TrialStatus(
            trial="a", state="running", samples=1000, samples_seen=500, samples_per_second=10.0, eta_seconds=50.0
        )
        waiting = TrialStatus(trial="b", state="waiting", samples=1000)
        assert training_eta_seconds([running, waiting]) == 150.0
        assert training_eta_seconds([running]) == 50.0
        assert training_eta_seconds([waiting]) is None

    def test_a_fit_has_at_most_the_iterations_that_are_left(self, run: Location) -> None:
        (run / "config.yaml").write_text("cluster: {fine: {iterations: 20}}\n")
        Stage("cluster", run / "clusters", {}).begin(1)
        began = json.loads((run / "clusters" / "started.json").read_text())["began_unix_seconds"]
        (run / "clusters" / "fit_progress.json").write_text(json.dumps({"iteration": 5}))
        touch(run / "clusters" / "fit_progress.json", began + 50)
        assert look_at_stage(run, "cluster").eta_seconds == pytest.approx(150.0, abs=0.01)


class TestLines:
    def test_the_stage_at_work_with_the_time_that_is_left(self, run: Location) -> None:
        assert looked(run).line() == "[embed] 3 of 11 units, about 8 min left"

    def test_the_next_stage_before_it_has_begun(self, run: Location) -> None:
        finish(run, "embed", "embeddings")
        assert looked(run).line() == "[cluster] has not begun"


class TestStall:
    def test_a_run_that_works_does_not_stand_still(self, run: Location) -> None:
        assert looked(run, NOW + STALL_SECONDS - 1).stall() is None

    def test_nothing_new_for_too_long_is_said(self, run: Location) -> None:
        expected = "embed: nothing new for 15 min; if its driver has ended, the same command resumes"
        assert looked(run, NOW + 900).stall() == expected

    def test_a_stage_that_does_not_begin_stands_still_too(self, run: Location) -> None:
        finish(run, "embed", "embeddings")
        touch(run / "embeddings" / "manifest.json", NOW)
        assert looked(run, NOW + 300).stall() is None
        assert str(looked(run, NOW + 900).stall()).startswith("cluster: nothing new for 15 min")

    @pytest.mark.parametrize(
        ("renewed", "words"),
        [
            (NOW - 2, "process 12 on node-7 holds its lease, renewed 2 s ago"),
            (NOW - 1200, "renewed 20 min ago: that driver has ended, the same command resumes"),
            (None, "no driver holds its lease: the same command resumes"),
        ],
    )
    def test_of_training_it_is_said_who_holds_the_lease(
        self, run: Location, renewed: float | None, words: str
    ) -> None:
        begin_training(run, TrialStatus(trial="seed", state="running", samples=800))
        if renewed is not None:
            lease = run / "experts" / LEASE_FILE
            lease.write_text(json.dumps({"driver": "x", "host": "node-7", "process": "12", "beats": "9"}))
            touch(lease, renewed)
        stall = looked(run).stall()
        assert stall is not None
        assert stall.startswith("train: nothing new for 20 min; ")
        assert stall.endswith(words)


class TestWatching:
    def test_it_says_what_changed_and_ends_with_the_last_stage_asked_for(self, run: Location) -> None:
        output = io.StringIO()
        moments = iter([NOW, NOW, NOW + 900, NOW + 900, NOW + 900])
        last = [NOW]

        def clock() -> float:
            last[0] = next(moments, last[0])
            return last[0]

        steps = iter([lambda: None, lambda: finish(run, "embed", "embeddings")])
        watch = Watch(run, "embed", STALL_SECONDS, clock)
        watch_run(watch, Console(file=output, width=200), 1.0, lambda _: next(steps)())  # type: ignore[no-untyped-call]
        lines = output.getvalue().splitlines()
        assert lines[0] == "[embed] 3 of 11 units, about 8 min left"
        assert lines[-1] == "done"
        assert len(lines) == len(set(lines)), "a line that says nothing new"

    def test_in_a_terminal_it_is_a_table(self, run: Location) -> None:
        begin_training(run, TrialStatus(trial="seed", state="finished", samples=800))
        output = io.StringIO()
        watch = Watch(run, "train", STALL_SECONDS)
        console = Console(file=output, force_terminal=True, width=160)
        watch_run(watch, console, 1.0, lambda _: finish(run, "train", "experts"))
        assert "training runs" in output.getvalue()

    def test_a_directory_without_a_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no run here"):
            open_watch(Location(str(tmp_path)), "evaluate", STALL_SECONDS)

    def test_the_command_ends_when_the_run_is_done(self, run: Location, capsys: pytest.CaptureFixture[str]) -> None:
        finish(run, "embed", "embeddings")
        assert main(["status", run.uri, "--watch", "--until", "embed"]) == 0
        assert capsys.readouterr().out == "done\n"

    def test_a_remote_run_is_watched_by_its_uri(self, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
        run = Location(f"{bucket}/run")
        (run / "config.yaml").write_text("run: x\n")
        finish(run, "embed", "embeddings")
        Stage("cluster", run / "clusters", {}).begin(1)
        assert looked(run, until="cluster").line() == "[cluster] 0 of 1 units"
        finish(run, "cluster", "clusters")
        assert main(["status", run.uri, "--watch", "--until", "cluster"]) == 0
        assert capsys.readouterr().out == "done\n"
