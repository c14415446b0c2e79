"""Work units, and a table of them. A unit is one shard of the input; large parquet files are split by row groups."""

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
COMPRESSED_SUFFIXES = frozenset({"gz", "bz2", "xz", "zst"})
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
        unit: Name, unique in the run and the same in every invocation; outputs are named after it.
        uri: The file.
        format: How to read it.
        row_groups: First row group, and the one after the last; None for the whole file.
        first_row: Number of the unit's first row in the file.
        size_bytes: Size of the file when it was listed.
        modified_unix_seconds: When the file was last written, at that time; 0 if unknown.
        rows: Rows of the unit, if the listing read them.
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
    """Check that all shards hold images, as training needs.

    Raises:
        UsageError: Some hold captions only.
    """
    without = [work_unit for work_unit in work_units if work_unit.format not in PAIR_FORMATS]
    if without:
        raise UsageError(
            f"{without[0].uri}: holds captions only ({len(without)} of {len(work_units)} shards do); experts train on "
            "parquet or WebDataset shards. Run the stages embed, cluster and assign, and train in a run over shards "
            "with images"
        )


def has_format(work_units: Sequence[WorkUnit], shard_format: ShardFormat) -> bool:
    """Whether a work unit has a format."""
    if isinstance(work_units, WorkUnitTable):
        return shard_format in work_units.table["format"].unique().to_pylist()
    return any(work_unit.format == shard_format for work_unit in work_units)


def unit_name(location: Location) -> str:
    """A readable name for a file; a hash of the URI makes it unique."""
    stem = location.name.rsplit(".", 1)[0]
    return f"{stem}-{hashlib.blake2b(location.uri.encode(), digest_size=8).hexdigest()}"


def suffix_format(name: str) -> ShardFormat | None:
    """The format by a file's suffix, or None; text may be compressed."""
    stem, _, suffix = name.lower().rpartition(".")
    packed = suffix in COMPRESSED_SUFFIXES
    shard_format = SUFFIX_FORMATS.get(stem.rpartition(".")[2] if packed else suffix)
    return None if packed and shard_format in PAIR_FORMATS else shard_format


class WorkUnitTable(Sequence[WorkUnit]):
    """Work units in an Arrow table; each access builds a `WorkUnit`. 250,000 units take 40 MB instead of 150.

    Args:
        table: With the columns of `WORK_UNITS_SCHEMA`.
        places: Which rows, in order; by default all. Parts of a table share its memory.

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
        """A table of work units; those of an iterator are never all in memory at once."""
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
        """The rows of these units: a copy if they are a part of a table."""
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
        place = range(len(self))[place]  # negative places count from the end; others raise IndexError
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
        """Pickle a part with its own rows only."""
        return WorkUnitTable, (self.table,)

    def chosen(self, places: Iterable[int]) -> "WorkUnitTable":
        """The units at some places, in the order of the places, without a copy of the table."""
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
    """Write work units to a parquet file; `note` is stored in its metadata."""
    table = WorkUnitTable.of(work_units).table.replace_schema_metadata(dict(note or {}))
    location.write_tables(table.schema, [table])


def read_work_units(location: Location) -> WorkUnitTable:
    """Read what `write_work_units` wrote.

    Raises:
        KeyError: A column is missing.
        pyarrow.ArrowInvalid: It is no parquet file, or a column is of another type.
    """
    table = location.read_table().combine_chunks()
    _give_back()
    return WorkUnitTable(table)


def _give_back() -> None:
    """Make Arrow's allocator return the memory that it keeps after building tables and decompressing."""
    pa.default_memory_pool().release_unused()
