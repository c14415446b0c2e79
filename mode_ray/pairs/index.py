"""The index of a set of pairs: the position of each pair in the source shards.

The index may be in a file that is larger than memory.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mode_ray.assign.table import DISTANCE, FINE, assigned_units, stream_assignments
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

SHARD = "shard"
MEMBER_COLUMNS = ("image_offset", "image_bytes", "caption_offset", "caption_bytes")
_BYTES_AT_MOST = 2**32 - 1
_TYPES = {
    "row": pa.uint32(),
    "caption_index": pa.int32(),
    "image_offset": pa.int64(),
    "image_bytes": pa.uint32(),
    "caption_offset": pa.int64(),
    "caption_bytes": pa.uint32(),
}
_COLUMNS_KEY = b"mode_ray.columns"


class PairIndex:
    """The positions of a set's pairs.

    There is one row per (pair, caption): `shard` int32 (position in `work_units`), `row` uint32, `caption_index`
    int32. If any work unit is a tar, a row also has the offsets (int64) and sizes (uint32) of the members; they are 0
    for pairs of parquet files. The values of a row are side by side, 12 or 36 bytes, so that a random pair is in one
    memory page.

    Args:
        work_units: The work units of the pairs.
        chunks: Structured arrays with the rows, in order, all of one type.

    Attributes:
        work_units: As given.
        dtype: The type of a row.
    """

    def __init__(self, work_units: Sequence[WorkUnit], chunks: Sequence[np.ndarray]) -> None:
        self.work_units = tuple(work_units)
        self.dtype = chunks[0].dtype
        self._chunks = tuple(chunks)
        self._files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, work_units: Sequence[WorkUnit], table: pa.Table) -> "PairIndex":
        """An index in memory, from a table with a column for each value of a row."""
        return cls(work_units, [_interleaved(table)])

    @classmethod
    def open(cls, work_units: Sequence[WorkUnit], *files: Path) -> "PairIndex":
        """An index in uncompressed Arrow files, its parts in order, mapped into memory."""
        index = cls(work_units, _mapped(files))
        index._files = files
        return index

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes map the files themselves.
        return {"work_units": self.work_units, "chunks": () if self._files else self._chunks, "files": self._files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["work_units"], _mapped(state["files"]) if state["files"] else state["chunks"])  # type: ignore[misc]
        self._files = state["files"]

    def __len__(self) -> int:
        return int(self._starts[-1]) + len(self._chunks[-1])

    def columns_at(self, positions: npt.ArrayLike) -> dict[str, np.ndarray]:
        """All values of some rows by name, integers as int64. Only the memory pages of these rows are read."""
        rows = self._rows_at(positions)
        return {name: _wide(rows[name]) for name in self.dtype.names or ()}

    def column(self, name: str) -> np.ndarray:
        """One value of all rows, in memory."""
        return _wide(np.concatenate([chunk[name] for chunk in self._chunks]))

    def take(self, positions: npt.ArrayLike) -> "PairIndex":
        """The index of a subset, in memory."""
        return PairIndex(self.work_units, [self._rows_at(positions)])

    def _rows_at(self, positions: npt.ArrayLike) -> np.ndarray:
        places = np.asarray(positions, np.int64)
        chunks = np.searchsorted(self._starts, places, side="right") - 1
        within = places - self._starts[chunks]
        rows = np.empty(len(places), self.dtype)
        for chunk in np.unique(chunks).tolist():
            here = chunks == chunk
            rows[here] = self._chunks[chunk][within[here]]
        return rows

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first row of each chunk."""
        return np.cumsum([0, *(len(chunk) for chunk in self._chunks[:-1])], dtype=np.int64)


def _wide(column: np.ndarray) -> np.ndarray:
    """A column for arithmetic: sums of narrow integers could overflow."""
    return column.astype(np.int64) if np.issubdtype(column.dtype, np.integer) else np.ascontiguousarray(column)


def _interleaved(table: pa.Table) -> np.ndarray:
    """The rows of a table as a structured array, with a field for each column."""
    rows = np.empty(table.num_rows, [(field.name, field.type.to_pandas_dtype()) for field in table.schema])
    for name in table.column_names:
        rows[name] = pc.fill_null(table[name], 0).to_numpy()
    return rows


def stored_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of an index as they are in a file: one column of bytes, and the type of a row in the schema's metadata."""
    rows = _interleaved(pa.Table.from_batches([batch]))
    width = pa.binary(rows.dtype.itemsize)
    column = pa.FixedSizeBinaryArray.from_buffers(width, len(rows), [None, pa.py_buffer(rows.tobytes())])
    return pa.record_batch([column], schema=pa.schema([("pair", width)], {_COLUMNS_KEY: json.dumps(rows.dtype.descr)}))


def has_stored_rows(metadata: Mapping[bytes, bytes]) -> bool:
    """Whether an index file is of `stored_rows`; version 0.1.0 had a column for each value."""
    return _COLUMNS_KEY in metadata


def _mapped(files: Sequence[Path]) -> list[np.ndarray]:
    chunks = []
    for file in files:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        dtype = np.dtype([(name, kind) for name, kind in json.loads(reader.schema.metadata[_COLUMNS_KEY])])
        for number in range(reader.num_record_batches):
            column = reader.get_batch(number).column(0)
            chunks.append(np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize))
    return chunks


def index_columns(*, tars: bool) -> pa.Schema:
    """The columns of an index; with offsets and sizes if some pairs are in tars."""
    names = [name for name in _TYPES if tars or name not in MEMBER_COLUMNS]
    return pa.schema([(SHARD, pa.int32()), *((name, _TYPES[name]) for name in names)])


def index_rows(assigned: pa.Table, number: int, schema: pa.Schema) -> pa.Table:
    """Index rows of assigned captions, a column for each value.

    The size of a member above 4 GiB is cut: it is no image, and is counted as one that cannot be decoded.
    """
    zeros = np.zeros(assigned.num_rows, np.int64)
    columns = [pa.array(np.full(assigned.num_rows, number, np.int32))]
    for field in schema:
        if field.name != SHARD:
            column = assigned[field.name] if field.name in assigned.column_names else pa.chunked_array([zeros])
            column = pc.fill_null(column, 0)
            if field.name in ("image_bytes", "caption_bytes"):
                column = pc.min_element_wise(column, pa.scalar(_BYTES_AT_MOST, pa.int64()))
            columns.append(column.cast(field.type))
    return pa.table(columns, schema=schema)


def load_index(assignments: Location, work_units: Sequence[WorkUnit]) -> PairIndex:
    """The index of all pairs of a few work units, in memory, with columns `fine` and `distance`; for reports.

    Raises:
        DataError: No work unit has assignments.
    """
    schema = index_columns(tars=any(work_unit.format == "webdataset" for work_unit in work_units))
    tables = [
        index_rows(assigned, number, schema)
        .append_column(FINE, assigned[FINE])
        .append_column(DISTANCE, assigned[DISTANCE])
        for number, _, assigned in stream_assignments(assignments, assigned_units(assignments, work_units))
    ]
    return PairIndex.of(work_units, pa.concat_tables(tables))


def nearest_rows(index: PairIndex, centers: int, per_center: int) -> np.ndarray:
    """Positions of up to `per_center` captions nearest to each center, in the order of centers; for reports."""
    fine = index.column(FINE)
    order = np.lexsort((index.column(DISTANCE), fine))
    fine = fine[order]
    starts = np.searchsorted(fine, np.arange(centers))
    nearest: np.ndarray = order[np.arange(len(fine)) - starts[fine] < per_center]
    return nearest
