"""An index names where pairs lie; it is the same in memory, in a mapped file and in another process."""

import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.assign.counts import fine_counts
from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex, index_columns, index_rows, load_index, nearest_rows
from mode_ray.pairs.index_files import write_index
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

FINE = np.random.default_rng(0).integers(0, 6, 1000)
SHARDS = tuple(
    WorkUnit(unit=unit, uri=f"/in/{unit}.x", format="webdataset" if unit == "c" else "parquet") for unit in "abcd"
)


def assignment(rows: list[int], fine: list[int], *, tar: bool = False) -> pa.Table:
    """An assignment shard."""
    columns: dict[str, pa.Array] = {
        "row": pa.array(rows, pa.int64()),
        "caption_index": pa.array([0] * len(rows), pa.int32()),
        "key": pa.array([str(row) for row in rows]),
        "fine": pa.array(fine, pa.int32()),
        "distance": pa.array([0.5] * len(rows), pa.float32()),
    }
    if tar:
        for name in ("image_offset", "image_bytes", "caption_offset", "caption_bytes"):
            columns[name] = pa.array([512 * (row + 1) for row in rows], pa.int64())
    return pa.table(columns)


@pytest.fixture
def assignments(tmp_path: Path) -> Location:
    """Of three shards; the second one was quarantined."""
    folder = Location(str(tmp_path))
    (folder / "c.parquet").write_table(assignment([0, 2], [1, 1], tar=True))
    (folder / "a.parquet").write_table(assignment([5], [0]))
    (folder / "d.parquet").write_table(assignment([], []))
    units = {"unit": ["a", "b", "c", "d"], "error": pa.array([None, "not a parquet file", None, None], pa.string())}
    (folder / "units.parquet").write_table(pa.table(units))
    return folder


class TestLoading:
    def test_pairs_come_in_order_of_the_shards_and_quarantined_shards_are_left_out(
        self, assignments: Location
    ) -> None:
        index = load_index(assignments, SHARDS)
        assert len(index) == 3
        assert index.work_units == SHARDS
        expected = {"shard": [0, 2, 2], "row": [5, 0, 2], "fine": [0, 1, 1], "image_offset": [0, 512, 1536]}
        assert {name: index.column(name).tolist() for name in expected} == expected
        assert "key" not in (index.dtype.names or ()), "names would be most of an index's memory"
        assert index.take(np.array([2, 0])).column("row").tolist() == [2, 5]

    def test_no_assignment_at_all(self, tmp_path: Path) -> None:
        for load in (load_index, lambda folder, work_units: fine_counts(folder, work_units, 4)):
            with pytest.raises(DataError, match="no assignment of the given shards; run `mode-ray assign` first"):
                load(Location(str(tmp_path)), SHARDS)

    def test_counts_add_up_over_the_shards_and_name_empty_clusters_too(self, assignments: Location) -> None:
        assert fine_counts(assignments, SHARDS, 4).tolist() == [1, 2, 0, 0]

    def test_a_member_above_four_gigabytes_is_cut(self) -> None:
        small = assignment([0], [0], tar=True)
        large = small.set_column(small.column_names.index("image_bytes"), "image_bytes", pa.array([5 * 2**30]))
        rows = index_rows(large, 0, index_columns(tars=True))
        assert rows["image_bytes"].to_pylist() == [2**32 - 1]

    def test_without_tars_there_are_no_offsets(self) -> None:
        rows = index_rows(assignment([3], [0]), 7, index_columns(tars=False))
        assert rows.to_pydict() == {"shard": [7], "row": [3], "caption_index": [0]}


class TestMappedFile:
    ROWS = 150_000  # in three batches

    @pytest.fixture(scope="class")
    def file(self, tmp_path_factory: pytest.TempPathFactory) -> Location:
        def tables() -> Iterator[pa.Table]:
            schema = index_columns(tars=True)
            for work_unit in range(15):
                rows = list(range(work_unit * 10_000, (work_unit + 1) * 10_000))
                yield index_rows(assignment(rows, [0] * 10_000, tar=True), work_unit, schema)

        location = Location(str(tmp_path_factory.mktemp("index"))) / "all.arrow"
        write_index(location, tables(), {"members": "all"})
        return location

    @pytest.fixture
    def index(self, file: Location) -> PairIndex:
        return PairIndex.open(SHARDS, Path(file.path))

    def test_rows_are_found_in_every_chunk(self, index: PairIndex) -> None:
        assert len(index) == self.ROWS
        positions = np.random.default_rng(0).integers(0, self.ROWS, 1000)
        columns = index.columns_at(positions)
        assert np.array_equal(columns["row"], positions)
        assert np.array_equal(columns["shard"], positions // 10_000)
        assert np.array_equal(columns["caption_offset"], 512 * (positions + 1))
        assert np.array_equal(columns["row"], index.column("row")[positions])
        assert {column.dtype for column in columns.values()} == {np.dtype(np.int64)}

    def test_the_values_of_a_pair_are_side_by_side(self, index: PairIndex, file: Location) -> None:
        assert index.dtype.itemsize == 36
        assert file.size_bytes() < self.ROWS * 36 + 10_000
        tables = [index_rows(assignment([3], [0]), 7, index_columns(tars=False))]
        assert PairIndex.of(SHARDS, pa.concat_tables(tables)).dtype.itemsize == 12

    def test_it_is_mapped_not_read(self, file: Location) -> None:
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        PairIndex.open(SHARDS, Path(file.path)).columns_at([0, self.ROWS - 1])
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert max(most_bytes, pa.total_allocated_bytes() - before) < 100_000

    def test_another_process_gets_its_path_alone(self, index: PairIndex) -> None:
        index.columns_at([5])
        packed = pickle.dumps(index)
        assert len(packed) < 2000
        again = pickle.loads(packed)  # noqa: S301  (our own, just made)
        assert again.columns_at([77])["row"].tolist() == [77]

    def test_one_in_memory_goes_whole(self, index: PairIndex) -> None:
        few = pickle.loads(pickle.dumps(index.take([9, 3])))  # noqa: S301  (our own, just made)
        assert few.columns_at([1, 0])["row"].tolist() == [3, 9]
        assert len(index.take(np.empty(0, np.int64))) == 0


class TestNearest:
    @pytest.fixture
    def index(self) -> PairIndex:
        generator = np.random.default_rng(1)
        table = pa.table(
            {"fine": pa.array(FINE, pa.int32()), "distance": pa.array(generator.random(1000), pa.float32())}
        )
        return PairIndex.of((), table)

    def test_the_nearest_captions_of_each_center(self, index: PairIndex) -> None:
        distance = index.column("distance")
        expected = []
        for center in range(6):
            members = np.flatnonzero(center == FINE)
            expected += members[np.argsort(distance[members])][:5].tolist()
        assert nearest_rows(index, 8, 5).tolist() == expected

    def test_small_clusters_give_what_they_have(self) -> None:
        table = pa.table(
            {"fine": pa.array([2, 0, 2], pa.int32()), "distance": pa.array([0.3, 0.1, 0.2], pa.float32())}
        )
        assert nearest_rows(PairIndex.of((), table), 4, 5).tolist() == [1, 2, 0]
