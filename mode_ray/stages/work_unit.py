"""Work units and the table of them: one input shard each, large parquet files split by row groups."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, overload

import pyarrow as pa

from mode_ray.errors import UsageError
from mode_ray.storage import Location

ShardFormat = Literal["parquet", "webdataset", "jsonl", "csv", "tsv"]
SUFFIX_FORMATS: dict[str, ShardFormat] = {
    "parquet": "parquet",
    "pq": "parquet",
    "tar": "webdataset",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
}
PAIR_FORMATS: frozenset[ShardFormat] = frozenset({"parquet", "webdataset"})
ALL_FORMATS: frozenset[ShardFormat] = frozenset(SUFFIX_FORMATS.values())
WORK_UNITS_SCHEMA = pa.schema(
    {
        "unit": pa.string(),
        "uri": pa.string(),
        "format": pa.string(),
        "first_group": pa.int32(),
        "end_group": pa.int32(),
        "first_row": pa.int64(),
        "size_bytes": pa.int64(),
        "modified_unix_seconds": pa.float64(),
        "rows": pa.int64(),
    }
)
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True, order=True, slots=True)
class WorkUnit:
    """One work unit: a whole file, or a range of a parquet file's row groups.

    A pair's identity is (unit, row): keys repeat on the web, and file names may repeat between directories.

    Attributes:
        unit: Name that is unique in the run and stable between invocations; outputs are named after it.
        uri: The file.
        format: How to read it.
        row_groups: First and last-but-one row group, or None for the whole file.
        first_row: Row number of the first row, counted over the whole file.
        size_bytes: Size of the file when it was listed.
        modified_unix_seconds: When the file was last written, by then; 0 where that is not known.
        rows: Rows of the unit, where the listing came by them.
    """

    unit: str
    uri: str
    format: ShardFormat
    row_groups: tuple[int, int] | None = None
    first_row: int = 0
    size_bytes: int = 0
    modified_unix_seconds: float = 0.0
    rows: int | None = None

    @property
    def location(self) -> Location:
        """The file."""
        return Location(self.uri)


def require_images(work_units: Sequence[WorkUnit]) -> None:
    """Refuse to train on shards that hold captions only.

    Raises:
        UsageError: Names the first of them.
    """
    without = [work_unit for work_unit in work_units if work_unit.format not in PAIR_FORMATS]
    if without:
        raise UsageError(
            f"{without[0].uri}: holds captions only ({len(without)} of {len(work_units)} shards do); experts train on "
            "parquet or WebDataset shards. Run the stages embed, cluster and assign, and train in a run over shards "
            "with images"
        )


def unit_name(location: Location) -> str:
    """A readable name that is unique by URI."""
    stem = location.name.rsplit(".", 1)[0]
    return f"{stem}-{hashlib.blake2b(location.uri.encode(), digest_size=8).hexdigest()}"


def suffix_format(name: str) -> ShardFormat | None:
    """The format that a file's name tells, or None; text may be gzipped."""
    stem = name.lower()
    packed = stem.endswith(".gz")
    shard_format = SUFFIX_FORMATS.get(stem.removesuffix(".gz").rsplit(".", 1)[-1])
    return None if packed and shard_format in PAIR_FORMATS else shard_format


class WorkUnitTable(Sequence[WorkUnit]):
    """Shards as an arrow table, each built when it is asked for: a quarter of a million take 40 megabytes, not 150.

    Args:
        table: Of `SHARDS_SCHEMA`, as `write_shards` wrote it.
        places: Which rows of it, in order; by default all. Parts of a table share it.

    Raises:
        KeyError: A column is missing.
        pyarrow.ArrowInvalid: A column is of another type.
    """

    def __init__(self, table: pa.Table, places: pa.Int64Array | None = None) -> None:
        self._whole = table.select(WORK_UNITS_SCHEMA.names).cast(
            WORK_UNITS_SCHEMA.with_metadata(table.schema.metadata)
        )
        self._places = places

    @classmethod
    def of(cls, work_units: Iterable[WorkUnit]) -> "WorkUnitTable":
        """Shards of any kind; those of an iterator are never all built at once."""
        if isinstance(work_units, WorkUnitTable):
            return work_units
        batches, left = [], iter(work_units)
        while rows := [_row(work_unit) for work_unit in islice(left, _ROWS_AT_ONCE)]:
            batches.append(pa.RecordBatch.from_pylist(rows, WORK_UNITS_SCHEMA))
        table = pa.Table.from_batches(batches, WORK_UNITS_SCHEMA).combine_chunks()
        batches.clear()
        _give_back()
        return cls(table)

    @property
    def table(self) -> pa.Table:
        """The rows alone; a copy, where these are a part of a table."""
        return self._whole if self._places is None else self._whole.take(self._places)

    def __len__(self) -> int:
        return int(self._whole.num_rows if self._places is None else len(self._places))

    @overload
    def __getitem__(self, place: int) -> WorkUnit: ...

    @overload
    def __getitem__(self, place: slice) -> "WorkUnitTable": ...

    def __getitem__(self, place: int | slice) -> "WorkUnit | WorkUnitTable":
        if isinstance(place, slice):
            return self.chosen(range(len(self))[place])
        place = range(len(self))[place]  # counts from the end, and refuses what is beyond
        row = place if self._places is None else self._places[place].as_py()
        return _work_unit(self._whole.slice(row, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[WorkUnit]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            if self._places is None:
                part = self._whole.slice(start, _ROWS_AT_ONCE)
            else:
                part = self._whole.take(self._places.slice(start, _ROWS_AT_ONCE))
            yield from map(_work_unit, part.to_pylist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, WorkUnitTable):
            return bool(self.table.equals(other.table))
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type["WorkUnitTable"], tuple[pa.Table]]:
        """A part takes along its own rows alone."""
        return WorkUnitTable, (self.table,)

    def chosen(self, places: Iterable[int]) -> "WorkUnitTable":
        """Those at some places, in the places' order, without a copy of the table."""
        chosen = pa.array(places, pa.int64())
        return WorkUnitTable(self._whole, chosen if self._places is None else self._places.take(chosen))


def _row(work_unit: WorkUnit) -> dict[str, object]:
    first, end = work_unit.row_groups or (None, None)
    row = {
        name: getattr(work_unit, name) for name in WORK_UNITS_SCHEMA.names if name not in ("first_group", "end_group")
    }
    return {**row, "first_group": first, "end_group": end}


def _work_unit(row: dict[str, Any]) -> WorkUnit:
    first, end = row.pop("first_group"), row.pop("end_group")
    return WorkUnit(**row, row_groups=None if first is None else (first, end))


def write_work_units(
    location: Location, work_units: Sequence[WorkUnit], note: Mapping[str, str] | None = None
) -> None:
    """Write the table of shards, for workers and invocations that need all of them.

    Args:
        location: The parquet file.
        work_units: The shards.
        note: Kept in the file's metadata.
    """
    table = WorkUnitTable.of(work_units).table.replace_schema_metadata(dict(note or {}))
    location.write_tables(table.schema, [table])


def read_work_units(location: Location) -> WorkUnitTable:
    """Read what `write_shards` wrote.

    Raises:
        KeyError: A column is missing.
        pyarrow.ArrowInvalid: It is no parquet file, or a column is of another type.
    """
    table = location.read_table().combine_chunks()
    _give_back()
    return WorkUnitTable(table)


def _give_back() -> None:
    """Make arrow's allocator give back what it keeps: pieces of odd sizes, and what decompression took."""
    pa.default_memory_pool().release_unused()
