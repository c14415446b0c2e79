"""The number of captions and work units of a run: given, counted in parquet footers, or estimated from some shards."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.plan.stages import Inventory
from mode_ray.stages.work_unit import WorkUnit

_FOOTERS_READ = 2_000
_SHARDS_READ = 8
_READERS = 16
_ROWS_PER_FILE = 10_000


def take_inventory(config: RunConfig, rows: float | None, rows_per_unit: float | None) -> Inventory:
    """Rows and work units of a run.

    Args:
        config: Config of the run.
        rows: Number of captions, or None to count them in `captions.paths`.
        rows_per_unit: Mean captions per work unit, or None to take it from the shards.

    Raises:
        UsageError: There is nothing to count and no number was given.
    """
    if rows is not None and rows <= 0:
        raise UsageError(f"--rows must be above 0, not {rows:g}")
    if rows_per_unit is not None and rows_per_unit <= 0:
        raise UsageError(f"--rows-per-unit must be above 0, not {rows_per_unit:g}")
    if rows is not None and rows_per_unit is not None:
        return _given(rows, rows_per_unit, "as given", counts_by_reading=config.captions.format != "parquet")
    try:
        work_units = list_work_units(config.captions)
    except DataError as error:
        if rows is None:
            raise UsageError(f"{error}; give the number of captions with --rows") from None
        said = f"{_ROWS_PER_FILE:,} a work unit assumed (--rows-per-unit), as nothing is found at captions.paths"
        return _given(rows, _ROWS_PER_FILE, said, counts_by_reading=config.captions.format != "parquet")
    counts_by_reading = any(work_unit.format != "parquet" for work_unit in work_units)
    counted, found = _count(work_units, config)
    if rows is None:
        return Inventory(rows=counted, units=len(work_units), counts_by_reading=counts_by_reading, found=found)
    return _given(rows, rows_per_unit or counted / len(work_units), found, counts_by_reading=counts_by_reading)


def _given(rows: float, rows_per_unit: float, said: str, *, counts_by_reading: bool) -> Inventory:
    units = math.ceil(rows / rows_per_unit)
    found = f"{rows:,.0f} given, in {units:,} work units of {rows_per_unit:,.0f} ({said})"
    return Inventory(rows=rows, units=units, counts_by_reading=counts_by_reading, found=found)


def _count(work_units: Sequence[WorkUnit], config: RunConfig) -> tuple[float, str]:
    """Rows of all shards, and a description of how they were counted.

    Raises:
        UsageError: The shards that were read have no captions.
    """
    footers = all(work_unit.format == "parquet" for work_unit in work_units)
    most = _FOOTERS_READ if footers else _SHARDS_READ
    chosen = sorted(np.random.default_rng(config.cluster.seed).permutation(len(work_units))[:most])
    with ThreadPoolExecutor(_READERS if footers else 1) as readers:
        rows = list(readers.map(lambda index: count_captions(work_units[index], config.captions), chosen))
    if sum(rows) == 0:
        raise UsageError(
            f"{work_units[0].uri}: no caption in the {len(rows)} shards that were read; give their number with --rows"
        )
    how = "parquet footers" if footers else "reading"
    if len(rows) == len(work_units):
        return float(sum(rows)), f"{sum(rows):,} counted by {how} in {len(work_units):,} work units"
    mean = float(np.mean(rows))
    error = float(np.std(rows, ddof=1)) / math.sqrt(len(rows)) / mean if len(rows) > 1 else 1.0
    total, share = mean * len(work_units), f"{len(rows):,} of {len(work_units):,} work units"
    return total, f"about {total:,.0f} (+-{error:.0%}), estimated by {how} of {share}"
