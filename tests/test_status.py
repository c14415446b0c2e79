"""What `mode-ray status` shows of a run directory that is empty, in the middle of its work, or done."""

import io
import json
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from rich.table import Table

from mode_ray.errors import UsageError
from mode_ray.run_directory import STATUS_FILE
from mode_ray.stage import Stage, UnitRecord
from mode_ray.status import status_table, trial_table
from mode_ray.storage import Location
from mode_ray.train.trial_status import TrialStatus


@pytest.fixture
def run(tmp_path: Path) -> Location:
    """A run directory in which nothing has happened yet."""
    location = Location.parse(str(tmp_path / "run [draft]"))
    (location / "config.yaml").write_text("run: x\n")
    return location


def rows(table: Table | None) -> list[list[str]]:
    """The cells of a table as they are printed."""
    assert table is not None
    output = io.StringIO()
    Console(file=output, width=300).print(table)
    lines = [line for line in output.getvalue().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def row(table: Table | None, name: str) -> list[str]:
    return next(cells for cells in rows(table) if cells[0] == name)


def write_trial(run: Location, status: TrialStatus) -> None:
    (run / "experts" / status.trial / STATUS_FILE).write_text(json.dumps(asdict(status)))


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run here \(no config\.yaml\)"):
        status_table(Location.parse(str(tmp_path)))


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
        table = trial_table(run)
        cells = row(table, "n2/00")
        assert cells[:7] == ["n2/00", "running", "400", "8,000", "1,900", "1.235", "4 min"]
        assert cells[7] in ("30 s ago", "31 s ago")
        assert cells[8:] == ["2", "3.5", ""]
        assert row(table, "dense") == ["dense", "waiting", "0", "9,000", "", "", "", "", "0", "0.0", ""]

    def test_a_finished_run_has_no_time_left_and_needs_no_checkpoint(self, run: Location) -> None:
        finished = TrialStatus(
            trial="seed", state="finished", samples=800, samples_seen=800, loss=0.5, checkpoint_unix_seconds=1e9
        )
        write_trial(run, finished)
        assert row(trial_table(run), "seed")[2:8] == ["800", "800", "", "0.500", "", ""]

    @pytest.mark.parametrize(
        "reason", ["/data/[/x].tar: row 3: damaged", "no column 'image'; it has [bold]", "[0] lost"]
    )
    def test_the_reason_is_shown_as_it_is(self, run: Location, reason: str) -> None:
        write_trial(run, TrialStatus(trial="n2/01", state="failed", samples=800, reason=reason))
        assert row(trial_table(run), "n2/01")[-1] == reason
