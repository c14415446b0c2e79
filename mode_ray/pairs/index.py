"""The index of a set of pairs: the position of each pair in the source shards.

The index may be in a file that is larger than memory.
"""

from collections.abc import Sequence
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
_PLACE_COLUMNS = {"row": pa.int64(), "caption_index": pa.int32(), **dict.fromkeys(MEMBER_COLUMNS, pa.int64())}


class PairIndex:
    """The positions of a set's pairs.

    The table has one row per (pair, caption): `shard` int32 (position in `work_units`), `row` int64, `caption_index`
    int32. If any work unit is a tar, it also has the offsets and sizes of the members, int64; they are 0 for pairs of
    parquet files.
    """

    def __init__(self, work_units: Sequence[WorkUnit], table: pa.Table) -> None:
        self.work_units = tuple(work_units)
        self.table = table
        self._files: tuple[Path, ...] = ()

    @classmethod
    def open(cls, work_units: Sequence[WorkUnit], *files: Path) -> "PairIndex":
        """An index in uncompressed Arrow files, its parts in order, mapped into memory."""
        index = cls(work_units, _mapped(files))
        index._files = files
        return index

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes map the files themselves.
        return {"work_units": self.work_units, "table": None if self._files else self.table, "_files": self._files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._files:
            self.table = _mapped(self._files)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def columns_at(self, positions: npt.ArrayLike) -> dict[str, np.ndarray]:
        """All columns of some rows. Only the memory pages of these rows are read."""
        places = np.asarray(positions, np.int64)
        chunks = np.searchsorted(self._starts, places, side="right") - 1
        within = places - self._starts[chunks]
        rows: dict[str, np.ndarray] = {}
        for name, views in self._views.items():
            rows[name] = np.empty(len(places), views[0].dtype) if views else np.empty(0, np.int64)
            for chunk in np.unique(chunks).tolist():
                here = chunks == chunk
                rows[name][here] = views[chunk][within[here]]
        return rows

    def take(self, positions: npt.ArrayLike) -> "PairIndex":
        """The index of a subset, in memory."""
        return PairIndex(self.work_units, pa.table(self.columns_at(positions)))

    @cached_property
    def _views(self) -> dict[str, list[np.ndarray]]:
        """The chunks of each column, without a copy."""
        return {name: [_view(chunk) for chunk in self.table[name].chunks] for name in self.table.column_names}

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first row of each chunk; all columns have the same chunks."""
        lengths = [len(chunk) for chunk in self.table.column(0).chunks]
        return np.cumsum([0, *lengths[:-1]], dtype=np.int64)


def _mapped(files: Sequence[Path]) -> pa.Table:
    return pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files])


def _view(chunk: pa.Array) -> np.ndarray:
    array: np.ndarray = (chunk if chunk.null_count == 0 else chunk.fill_null(0)).to_numpy()
    return array


def index_columns(*, tars: bool) -> pa.Schema:
    """The columns of an index; with offsets and sizes if some pairs are in tars."""
    names = [name for name in _PLACE_COLUMNS if tars or name not in MEMBER_COLUMNS]
    return pa.schema([(SHARD, pa.int32()), *((name, _PLACE_COLUMNS[name]) for name in names)])


def index_rows(assigned: pa.Table, number: int, schema: pa.Schema) -> pa.Table:
    """Index rows of assigned captions."""
    zeros = np.zeros(assigned.num_rows, np.int64)
    columns = [pa.array(np.full(assigned.num_rows, number, np.int32))]
    for field in schema:
        if field.name != SHARD:
            column = assigned[field.name] if field.name in assigned.column_names else pa.chunked_array([zeros])
            columns.append(pc.fill_null(column, 0).cast(field.type))
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
    return PairIndex(work_units, pa.concat_tables(tables).combine_chunks())


def nearest_rows(index: PairIndex, centers: int, per_center: int) -> np.ndarray:
    """Positions of up to `per_center` captions nearest to each center, in the order of centers; for reports."""
    order = pc.sort_indices(index.table, [(FINE, "ascending"), (DISTANCE, "ascending")]).to_numpy()
    fine = index.table[FINE].to_numpy()[order]
    starts = np.searchsorted(fine, np.arange(centers))
    nearest: np.ndarray = order[np.arange(len(fine)) - starts[fine] < per_center]
    return nearest
