"""The captions of each fine cluster are counted once, and then read from one file."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from mode_ray.assign.counts import fine_counts
from mode_ray.errors import DataError
from mode_ray.run_directory import FINE_COUNTS_FILE, UNITS
from mode_ray.stages.manifest import Stage, UnitRecord, read_units
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

UNIT_NAMES = ("a", "b", "c")
WORK_UNITS = [WorkUnit(unit=unit, uri=f"/in/{unit}.parquet", format="parquet") for unit in UNIT_NAMES]


@pytest.fixture
def assignments(tmp_path: Path) -> Location:
    """Three units; the last one was quarantined."""
    stage = Stage("assign", Location(str(tmp_path)), {})
    stage.begin(3)
    made = [
        stage.write_unit(
            pa.table({"fine": pa.array(fine, pa.int32())}), UnitRecord(unit=unit, source=unit, rows_in=len(fine))
        )
        for unit, fine in (("a", [0, 2, 2]), ("b", [0, 0]))
    ]
    stage.finish([*made, UnitRecord(unit="c", source="c", error="truncated")], {})
    return stage.directory


def test_counts_add_up_and_name_empty_clusters_too(assignments: Location) -> None:
    assert fine_counts(assignments, WORK_UNITS, 4).tolist() == [3, 0, 2, 0]


def test_they_are_read_from_their_file_afterwards(assignments: Location) -> None:
    counted = fine_counts(assignments, WORK_UNITS, 4)
    for name in (f"{unit}.parquet" for unit in ("a", "b")):
        (assignments / name).delete()
    (assignments / UNITS).delete()
    assert fine_counts(assignments, WORK_UNITS, 4).tolist() == counted.tolist()


def test_counts_of_other_assignments_are_not_used(assignments: Location) -> None:
    fine_counts(assignments, WORK_UNITS, 4)
    stage = Stage("assign", assignments, {})
    records = read_units(assignments)
    records[1] = stage.write_unit(pa.table({"fine": pa.array([3], pa.int32())}), records[1])
    stage.finish(records, {})
    assert fine_counts(assignments, WORK_UNITS, 4).tolist() == [1, 0, 2, 1]


def test_the_file_is_plain(assignments: Location) -> None:
    fine_counts(assignments, WORK_UNITS, 4)
    assert json.loads((assignments / FINE_COUNTS_FILE).read_text())["counts"] == [3, 0, 2, 0]


def test_a_missing_file_is_an_error_and_not_a_smaller_count(assignments: Location) -> None:
    (assignments / "b.parquet").delete()
    with pytest.raises(DataError, match=r"b\.parquet: no such file; .* run `mode-ray assign` again"):
        fine_counts(assignments, WORK_UNITS, 4)
