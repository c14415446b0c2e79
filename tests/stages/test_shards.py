"""Work units as such: what may be trained on, and the table that holds a great many of them."""

import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from mode_ray.errors import UsageError
from mode_ray.stages.work_unit import WorkUnit, WorkUnitTable, read_work_units, require_images, write_work_units
from mode_ray.storage import Location

SHARDS = [
    WorkUnit(unit="a", uri="/data/a.tar", format="webdataset", size_bytes=7, modified_unix_seconds=1.5),
    WorkUnit(unit="b-g00002", uri="s3://x/b.parquet", format="parquet", row_groups=(2, 4), first_row=20, rows=9),
    WorkUnit(unit="c", uri="/data/c.csv", format="csv"),
]


def test_shards_without_images_are_not_trained_on() -> None:
    tar = WorkUnit(unit="a", uri="/data/a.tar", format="webdataset")
    text = WorkUnit(unit="b", uri="/data/b.csv.gz", format="csv")
    require_images([tar])
    with pytest.raises(
        UsageError, match=r"/data/b\.csv\.gz: holds captions only \(1 of 2 shards do\); experts train on"
    ):
        require_images([tar, text])


class TestTable:
    def test_it_reads_as_the_list_that_it_was_made_of(self) -> None:
        table = WorkUnitTable.of(iter(SHARDS))
        assert len(table) == 3
        assert list(table) == SHARDS
        assert table == SHARDS
        assert table != SHARDS[:2]
        assert [table[place] for place in (0, 1, 2, -1)] == [*SHARDS, SHARDS[-1]]
        assert SHARDS[1] in table

    def test_a_place_beyond_it_is_refused(self) -> None:
        with pytest.raises(IndexError):
            WorkUnitTable.of(SHARDS)[3]

    @pytest.mark.parametrize("part", [slice(1, None), slice(0, 0), slice(None, None, -1), slice(-2, 9), slice(5, 9)])
    def test_a_part_is_a_table_too(self, part: slice) -> None:
        taken = WorkUnitTable.of(SHARDS)[part]
        assert isinstance(taken, WorkUnitTable)
        assert taken == SHARDS[part]

    def test_parts_of_parts_keep_their_places_and_go_to_other_processes_alone(self) -> None:
        part = WorkUnitTable.of(SHARDS).chosen([2, 0])
        assert list(part) == [SHARDS[2], SHARDS[0]]
        assert part[1] == part[-1] == part[1:][0] == SHARDS[0]
        sent = pickle.loads(pickle.dumps(part))  # noqa: S301 - our own
        assert sent == [SHARDS[2], SHARDS[0]]
        assert len(sent.table) == 2

    def test_it_is_empty_where_nothing_was_found(self) -> None:
        assert not WorkUnitTable.of([])
        assert WorkUnitTable.of([]) == []

    def test_it_takes_a_few_tens_of_bytes_beside_its_texts(self) -> None:
        work_units = (WorkUnit(unit=f"{n:06d}", uri=f"/data/{n:06d}.tar", format="webdataset") for n in range(20_000))
        assert WorkUnitTable.of(work_units).table.nbytes < 20_000 * (6 + 16 + 10 + 60)

    def test_it_goes_to_other_processes(self) -> None:
        assert pickle.loads(pickle.dumps(WorkUnitTable.of(SHARDS))) == SHARDS  # noqa: S301 - our own

    def test_it_comes_back_from_its_file(self, tmp_path: Path) -> None:
        location = Location(str(tmp_path / "shards.parquet"))
        write_work_units(location, SHARDS)
        assert read_work_units(location) == SHARDS

    def test_a_table_of_something_else_is_refused(self) -> None:
        with pytest.raises(KeyError):
            WorkUnitTable(pa.table({"unit": ["a"]}))
