"""A resumed stage finds its finished units in its journal; the outputs themselves still decide what is finished."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from mode_ray.errors import DataError, WriteError
from mode_ray.run_directory import JOURNAL_DIRECTORY, MANIFEST
from mode_ray.stages.journal import RecordJournal, finished_units
from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.storage import Location


def make(directory: Location, *units: str, journalled: bool = True) -> list[UnitRecord]:
    """An invocation that makes some units and is then killed."""
    stage = Stage("embed", directory, {})
    stage.begin(len(units))
    table = pa.table({"row": pa.array([0, 1], pa.int32())})
    records = [stage.write_unit(table, UnitRecord(unit=unit, source=f"/in/{unit}", rows_in=2)) for unit in units]
    if journalled:
        with RecordJournal(directory, stage.attempt) as journal:
            for record in records:
                journal.add(record)
    return records


def overwrite(file: Location, size: int) -> None:
    """An output whose footer cannot be read."""
    file.write_bytes(b"x" * size)


@pytest.fixture
def directory(tmp_path: Path) -> Location:
    return Location(str(tmp_path)) / "assignments"


class TestWhatCounts:
    def test_a_journalled_unit_is_finished_and_its_footer_is_not_read(self, directory: Location) -> None:
        records = make(directory, "a", "sub/b")
        overwrite(directory / "sub/b.parquet", records[1].bytes_out)
        assert finished_units(directory) == {record.unit: record for record in records}

    def test_units_that_are_not_journalled_are_read_from_their_footers(self, directory: Location) -> None:
        records = [*make(directory, "a"), *make(directory, "b", journalled=False)]
        assert finished_units(directory) == {record.unit: record for record in records}

    def test_a_unit_without_an_output_is_not_finished(self, directory: Location) -> None:
        make(directory, "a", "b")
        (directory / "a.parquet").delete()
        assert list(finished_units(directory)) == ["b"]

    def test_an_output_of_another_size_is_not_the_one_in_the_journal(self, directory: Location) -> None:
        (record,) = make(directory, "a")
        overwrite(directory / "a.parquet", record.bytes_out - 1)
        with pytest.raises(DataError, match=r"a\.parquet: damaged .* delete it and run again"):
            finished_units(directory)

    def test_the_newer_record_counts(self, directory: Location) -> None:
        make(directory, "a")
        with RecordJournal(directory, "9999999999-later") as journal:
            size = finished_units(directory)["a"].bytes_out
            journal.add(UnitRecord(unit="a", source="/in/a", rows_in=7, bytes_out=size))
        assert finished_units(directory)["a"].rows_in == 7

    def test_quarantined_units_are_tried_again(self, directory: Location) -> None:
        make(directory, "a")
        with RecordJournal(directory, "0-x") as journal:
            journal.add(UnitRecord(unit="b", source="/in/b", error="truncated tar"))
        assert list(finished_units(directory)) == ["a"]

    def test_a_stage_that_is_opened_again_is_resumed_from_its_list_of_units(self, directory: Location) -> None:
        records = make(directory, "a", "b")
        Stage("embed", directory, {}).finish(records, {})
        assert not (directory / JOURNAL_DIRECTORY).exists(), "the list has the same records"
        (directory / MANIFEST).delete()
        (directory / "a.parquet").delete()
        overwrite(directory / "b.parquet", records[1].bytes_out)
        assert finished_units(directory) == {"b": records[1]}

    def test_a_damaged_file_of_the_journal_is_named(self, directory: Location) -> None:
        make(directory, "a")
        (file,) = (directory / JOURNAL_DIRECTORY).files()
        file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(DataError, match=rf"{file.name}: damaged .* delete it and run again"):
            finished_units(directory)


def test_records_are_written_a_thousand_at_a_time_and_the_rest_at_the_end(directory: Location) -> None:
    with RecordJournal(directory, "0-x") as journal:
        for number in range(2500):
            journal.add(UnitRecord(unit=str(number), source=""))
        written = [len(file.read_table()) for file in (directory / JOURNAL_DIRECTORY).files()]
        assert written == [1000, 1000]
    assert [len(file.read_table()) for file in (directory / JOURNAL_DIRECTORY).files()] == [1000, 1000, 500]


def test_a_journal_that_cannot_be_written_does_not_hide_why_the_stage_ended(directory: Location) -> None:
    (directory / JOURNAL_DIRECTORY).write_text("a file in its place")

    def end(error: Exception | None) -> None:
        with RecordJournal(directory, "0-x") as journal:
            journal.add(UnitRecord(unit="a", source=""))
            if error is not None:
                raise error

    with pytest.raises(ValueError, match="the reason"):
        end(ValueError("the reason"))
    with pytest.raises(WriteError, match="finished work is kept"):
        end(None)


class TestRequests:
    def test_resuming_takes_as_many_for_200_units_as_for_50(
        self, bucket: str, s3_requests: Callable[[], Counter[str]]
    ) -> None:
        taken = []
        for units in (50, 200):
            directory = Location.parse(f"{bucket}/{units}/assignments")
            make(directory, *(f"{number:04d}" for number in range(units)))
            s3_requests()
            assert len(finished_units(directory)) == units
            taken.append(s3_requests())
        assert taken[0] == taken[1]
        assert taken[0].total() < 10

    def test_a_footer_takes_one(self, bucket: str, s3_requests: Callable[[], Counter[str]]) -> None:
        directory = Location.parse(f"{bucket}/assignments")
        make(directory, *(f"{number:04d}" for number in range(20)), journalled=False)
        s3_requests()
        assert len(finished_units(directory)) == 20
        taken = s3_requests()
        assert taken.total() <= 20 + 2, "the listing gives the sizes"
