"""`mode-ray status` of a run directory that is empty, in progress, done or damaged."""

import io
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console
from terminal import require_words, shown_at_80_columns

from mode_ray.errors import DataError, UsageError
from mode_ray.observe.status import status_table, trial_table
from mode_ray.run_directory import LEASE_FILE, STATUS_FILE
from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.storage import Location
from mode_ray.train.runs.status import TrialStatus
from mode_ray.util.tables import WideTable


@pytest.fixture
def run(tmp_path: Path) -> Location:
    """A run directory in which nothing has happened yet."""
    location = Location.parse(str(tmp_path / "run [draft]"))
    (location / "config.yaml").write_text("run: x\n")
    return location


def rows(table: WideTable) -> list[list[str]]:
    """The cells of a table."""
    return [[cell.plain for cell in cells] for cells in table.rows]


def trials(run: Location) -> WideTable:
    """The table of the training runs, without the notes below."""
    group = trial_table(run)
    assert group is not None
    table = group.renderables[0]
    assert isinstance(table, WideTable)
    return table


def printed(run: Location) -> list[str]:
    """The lines about the training runs."""
    output = io.StringIO()
    Console(file=output, width=80).print(trial_table(run))
    return output.getvalue().splitlines()


def row(table: WideTable, name: str) -> list[str]:
    return next(cells for cells in rows(table) if cells[0] == name)


def write_trial(run: Location, status: TrialStatus) -> None:
    (run / "experts" / status.trial / STATUS_FILE).write_text(json.dumps(asdict(status)))


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run here \(no config\.yaml\)"):
        status_table(Location.parse(str(tmp_path)))


def test_the_config_of_a_run_names_the_directory(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UsageError, match=f"config.yaml: the config of a run, not its directory: give {tmp_path}$"):
        status_table(Location.parse(str(tmp_path / "config.yaml")))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("embeddings/manifest.json", "{", "manifest.json: not a manifest (Expecting"),
        ("embeddings/manifest.json", '{"stage": "embed"}', "manifest.json: not a manifest ("),
        ("embeddings/started.json", "", "started.json: not JSON (Expecting"),
        ("experts/seed/status.json", "x", "status.json: not a status (Expecting"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(run: Location, name: str, content: str, said: str) -> None:
    for stage in ("embeddings", "experts"):
        Stage(stage, run / stage, {}).begin(2)
    (run / name).write_text(content)
    with pytest.raises(DataError) as caught:
        status_table(run)
    assert str(caught.value).startswith(f"{(run / name).parent}/{said}")
    assert "\n" not in str(caught.value)


def test_before_anything_has_begun_all_stages_are_absent(run: Location) -> None:
    found = rows(status_table(run))
    assert [cells[:2] for cells in found] == [
        [stage, "absent"] for stage in ("embed", "cluster", "assign", "train", "evaluate")
    ]
    assert trial_table(run) is None


def test_a_started_stage_shows_how_many_units_are_done(run: Location) -> None:
    stage = Stage("embed", run / "embeddings", {"encoder.model": "x"})
    stage.begin(3)
    for unit in ("a", "b"):
        stage.write_unit(pa.table({"row": [1]}), UnitRecord(unit=unit, source=f"{unit}.tar", rows_in=1, rows_out=1))
    assert row(status_table(run), "embed")[:3] == ["embed", "started", "2/3"]


def test_a_finished_stage_shows_its_counts(run: Location) -> None:
    stage = Stage("assign", run / "assignments", {"assign.rule": "nearest"})
    stage.begin(2)
    done = UnitRecord(unit="a", source="a.tar", rows_in=1500, rows_out=1400, refused={"empty": 60, "too long": 40})
    bad = UnitRecord(unit="b", source="b.tar", error="b.tar: truncated tar")
    stage.finish([done, bad], {})
    assert row(status_table(run), "assign")[:7] == ["assign", "done", "2/2", "1,500", "1,400", "100", "1"]


def test_training_counts_finished_runs_and_evaluation_measured_tasks(run: Location) -> None:
    Stage("train", run / "experts", {}).begin(4)
    write_trial(run, TrialStatus(trial="seed", state="finished", samples=800))
    write_trial(run, TrialStatus(trial="n2/00", state="running", samples=800))
    Stage("evaluate", run / "evaluation", {}).begin(2)
    (run / "evaluation/tasks/pets/task.json").write_text("{}")
    table = status_table(run)
    assert row(table, "train")[1:3] == ["started", "1/4"]
    assert row(table, "evaluate")[1:3] == ["started", "1/2"]


def test_a_large_run_fits_80_columns(run: Location) -> None:
    stage = Stage("embed", run / "embeddings", {})
    stage.begin(250_000)
    counts: dict[str, Any] = {
        "units": 250_000,
        "rows_in": 2_500_000_000,
        "rows_out": 2_498_765_432,
        "refused": {"empty": 1_234_568},
    }
    manifest = replace(stage.finish([], {}), **counts, seconds=54_321.0)
    (run / "embeddings/manifest.json").write_text(json.dumps(asdict(manifest)))
    for trial in ("dense-equal-total", "n16/00"):
        write_trial(
            run,
            TrialStatus(
                trial=trial,
                state="running",
                samples=12_800_000_000,
                samples_seen=3_000_000_000,
                samples_per_second=123_456.0,
                loss=12.345,
                eta_seconds=80_000.0,
                checkpoint_unix_seconds=time.time() - 1800,
            ),
        )
    shown = shown_at_80_columns(status_table(run))
    require_words(shown, ["250000/250000", "2.5 B", "1.23 M", "15.1 h", "left out", "evaluate"])
    assert shown.count("stage") == 1, "two blocks"
    trials_shown = shown_at_80_columns(trial_table(run) or "")
    require_words(trials_shown, ["dense-equal-total", "12.8 B", "30 min ago", "22.2 h left"])
    assert trials_shown.count("state") == 1, "two blocks"


class TestActivity:
    """Nobody works on the run any more, for example after `ray job stop`."""

    def begin(self, run: Location, minutes: float) -> None:
        """A train stage whose files are so old."""
        Stage("train", run / "experts", {}).begin(2)
        running = TrialStatus(
            trial="seed",
            state="running",
            samples=800,
            samples_seen=700,
            samples_per_second=3.0,
            eta_seconds=34.0,
            loss=2.0,
            checkpoint_samples=640,
        )
        write_trial(run, running)
        self.age(run, minutes, "started.json", "seed/status.json")

    def age(self, run: Location, minutes: float, *files: str) -> None:
        then = time.time() - 60 * minutes
        for file in files:
            os.utime((run / "experts" / file).path, (then, then))

    def hold_lease(self, run: Location, minutes: float) -> None:
        lease = {"driver": "x", "host": "node-7", "process": "12", "beats": "9"}
        (run / "experts" / LEASE_FILE).write_text(json.dumps(lease))
        self.age(run, minutes, LEASE_FILE)

    @pytest.mark.parametrize("minutes", [2, 17])
    @pytest.mark.parametrize("lease", [None, "as old as the files"])
    def test_training_without_a_driver_is_stopped(self, run: Location, minutes: float, lease: str | None) -> None:
        self.begin(run, minutes)
        if lease is not None:
            self.hold_lease(run, minutes)
        table = status_table(run)
        assert row(table, "train")[1:3] == ["stopped", "0/2"]
        assert row(table, "train")[-1] == "", "no time left"
        assert f"train: nothing new for {minutes} min; " in shown_at_80_columns(table)
        seed = row(trials(run), "seed")
        assert seed[:2] == ["seed", "stopped"]
        assert seed[3:6] == ["80%", "", ""], "what it resumes from, no speed and no loss"
        assert seed[-1] == ""

    def test_a_lease_that_is_renewed_is_a_driver_at_work(self, run: Location) -> None:
        self.begin(run, 2)
        self.hold_lease(run, 0)
        assert row(status_table(run), "train")[-1] == "34 s left"
        assert row(trials(run), "seed")[1] == "running"

    def test_a_driver_without_output_is_stalled(self, run: Location) -> None:
        self.begin(run, 17)
        self.hold_lease(run, 0)
        table = status_table(run)
        assert row(table, "train")[1] == "stalled"
        require_words(shown_at_80_columns(table), ["process 12 on node-7 holds its lease"])
        assert row(trials(run), "seed")[1] == "running"

    def test_another_stage_is_stalled_after_ten_minutes(self, run: Location) -> None:
        Stage("embed", run / "embeddings", {}).begin(2)
        assert row(status_table(run), "embed")[1] == "started"
        then = time.time() - 660
        os.utime((run / "embeddings" / "started.json").path, (then, then))
        assert row(status_table(run), "embed")[1] == "stalled"


class TestTrials:
    def test_a_run_shows_its_figures_what_is_left_and_the_age_of_its_checkpoint(self, run: Location) -> None:
        running = TrialStatus(
            trial="n2/00",
            state="running",
            samples=8000,
            launches=2,
            seconds=3.5,
            samples_seen=400,
            samples_per_second=1900.4,
            loss=1.23456,
            eta_seconds=250.0,
            checkpoint_samples=320,
            checkpoint_unix_seconds=time.time() - 30,
        )
        write_trial(run, running)
        write_trial(run, TrialStatus(trial="dense", state="waiting", samples=9000))
        table = trials(run)
        cells = row(table, "n2/00")
        assert cells[:6] == ["n2/00", "running", "8,000", "5%", "1,900", "1.235"]
        assert cells[6] in ("30 s ago", "31 s ago")
        assert cells[7:] == ["4 min left"]
        assert row(table, "dense") == ["dense", "waiting", "9,000", "0%", "", "", "", ""]
        assert printed(run)[-1] == "n2/00: launched 2 times"

    def test_a_finished_run_has_no_time_left_and_needs_no_checkpoint(self, run: Location) -> None:
        finished = TrialStatus(
            trial="seed", state="finished", samples=800, samples_seen=800, loss=0.5, checkpoint_unix_seconds=1e9
        )
        write_trial(run, finished)
        assert row(trials(run), "seed")[2:] == ["800", "100%", "", "0.500", "", ""]

    @pytest.mark.parametrize(
        "reason", ["/data/[/x].tar: row 3: damaged", "no column 'image'; it has [bold]", "[0] lost"]
    )
    def test_the_reason_is_shown_as_it_is(self, run: Location, reason: str) -> None:
        write_trial(run, TrialStatus(trial="n2/01", state="failed", samples=800, reason=reason))
        assert printed(run)[-1] == f"n2/01: {reason}"
