"""The table of assignments: its columns, and how it is read; one file for each work unit."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mode_ray.embed.table import place_columns
from mode_ray.errors import DataError
from mode_ray.run_directory import MANIFEST, UNITS
from mode_ray.stages.manifest import read_output
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.read_ahead import read_ahead

FINE = "fine"
"""Column: the nearest fine center, int32."""
DISTANCE = "distance"
"""Column: the squared distance to it, float32."""
_READERS = 8

NumberedUnit = tuple[int, WorkUnit]
"""A work unit with its position among all work units of the run."""


def assignment_table(
    captions: pa.Table, fine_b: npt.NDArray[np.int32], squared_distance_b: npt.NDArray[np.float32]
) -> pa.Table:
    """The assignments of one work unit: which caption each row belongs to, then the two columns above."""
    return pa.table({**place_columns(captions), FINE: pa.array(fine_b), DISTANCE: pa.array(squared_distance_b)})


def read_assignments(assignments: Location, unit: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the assignments of one work unit.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        return read_output(assignments, unit, columns)
    except FileNotFoundError:
        raise DataError(
            f"{assignments}/{unit}.parquet: no such file; delete {assignments / MANIFEST} and run `mode-ray assign` "
            "again"
        ) from None


def assigned_units(
    assignments: Location, work_units: Sequence[WorkUnit], places: range | None = None
) -> list[NumberedUnit]:
    """Work units that have assignments, with their positions; those without were quarantined.

    Args:
        assignments: Directory of the assign stage.
        work_units: All work units of the run.
        places: Only the units at these positions.

    Raises:
        DataError: There is none at all.
    """
    chosen = range(len(work_units)) if places is None else places
    present = units_with_output(assignments)
    candidates = work_units[chosen.start : chosen.stop]
    numbered = [item for item in zip(chosen, candidates, strict=True) if item[1].unit in present]
    if not numbered and places is None:
        raise DataError(f"{assignments}: no assignment of the given shards; run `mode-ray assign` first")
    return numbered


def units_with_output(assignments: Location) -> set[str]:
    """Names of the units that were not quarantined, from the stage's list of units, or else from its files."""
    try:
        table = (assignments / UNITS).read_table(["unit", "error"])
    except FileNotFoundError:
        return {file.name.removesuffix(".parquet") for file in assignments.files()}
    return set(table["unit"].filter(table["error"].is_null()).to_pylist())


def stream_assignments(
    assignments: Location, numbered: Sequence[NumberedUnit], columns: Sequence[str] | None = None
) -> Iterator[tuple[int, WorkUnit, pa.Table]]:
    """The assignments of some work units, in order; a few tables are in memory at a time.

    Args:
        assignments: Directory of the assign stage.
        numbered: Which units, as `assigned_units` returns them.
        columns: Those to read, or None for all.

    Raises:
        DataError: A file is missing or damaged.
    """

    def read(item: NumberedUnit) -> tuple[int, WorkUnit, pa.Table]:
        number, work_unit = item
        return number, work_unit, read_assignments(assignments, work_unit.unit, columns)

    return read_ahead(read, numbered, ahead=_READERS, threads=_READERS)
