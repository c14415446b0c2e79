"""Counts the captions of every unit in Ray tasks, for drawing samples. The stage's directory caches the counts."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from mode_ray.captions.read import count_captions
from mode_ray.config.base import ActorPool
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit, WorkUnitTable
from mode_ray.storage import Location
from mode_ray.util.ray_tasks import task_result
from mode_ray.util.retry import retry

_SCHEMA = pa.schema(
    {
        "unit": pa.string(),
        "source_bytes": pa.int64(),
        "source_modified_unix_seconds": pa.float64(),
        "captions": pa.int64(),
    }
)
_UNITS_PER_TASK = 64
_COUNTERS_PER_TASK = 8
_WRITE_INTERVAL_SECONDS = 30.0


def count_all_captions(
    work_units: Sequence[WorkUnit],
    config: CaptionsConfig,
    pool: ActorPool,
    location: Location,
    on_counted: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """The number of captions by unit, including refused ones; units whose source cannot be read are missing.

    Args:
        work_units: The units.
        config: How to read captions.
        pool: CPUs and node labels of a task, and retries after an I/O error.
        location: File for the counts; counts of unchanged sources are reused.
        on_counted: Called with the number of units counted so far and the number of all units.
    """
    counts = _read_counts(location, work_units)
    left = WorkUnitTable.of(work_unit for work_unit in work_units if work_unit.unit not in counts)
    if not left:
        return counts
    table = ray.put(left)
    task: Any = ray.remote(num_cpus=pool.cpus_per_actor, max_retries=-1)(_count_units)
    counting = [
        task.options(name="count captions", label_selector=pool.required_labels).remote(
            table, range(start, min(start + _UNITS_PER_TASK, len(left))), config, pool.retries_per_unit
        )
        for start in range(0, len(left), _UNITS_PER_TASK)
    ]
    done, written = len(counts), time.monotonic()
    while counting:
        (ready,), counting = ray.wait(counting)
        counted: dict[str, int | None] = task_result(ready)
        counts.update((unit, captions) for unit, captions in counted.items() if captions is not None)
        done += len(counted)
        if on_counted is not None:
            on_counted(done, len(work_units))
        if time.monotonic() - written > _WRITE_INTERVAL_SECONDS:
            _write_counts(location, work_units, counts)
            written = time.monotonic()
    _write_counts(location, work_units, counts)
    return counts


def _count_units(
    table: WorkUnitTable, places: Sequence[int], config: CaptionsConfig, retries: int
) -> dict[str, int | None]:
    """The number of captions of the units at some places, by name; None if a unit cannot be read."""
    own = [table[place] for place in places]
    with ThreadPoolExecutor(_COUNTERS_PER_TASK) as counters:
        counts = counters.map(lambda work_unit: _count(work_unit, config, retries), own)
        return {work_unit.unit: count for work_unit, count in zip(own, counts, strict=True)}


def _count(work_unit: WorkUnit, config: CaptionsConfig, retries: int) -> int | None:
    """None if the unit cannot be read; the embed stage then quarantines it with the reason."""
    try:
        return retry(partial(count_captions, work_unit, config), retries)
    except (DataError, OSError):
        return None


def _write_counts(location: Location, work_units: Sequence[WorkUnit], counts: Mapping[str, int]) -> None:
    rows = [(u.unit, u.size_bytes, u.modified_unix_seconds, counts[u.unit]) for u in work_units if u.unit in counts]
    columns = zip(*rows, strict=True) if rows else ((),) * len(_SCHEMA)
    arrays = [pa.array(values, kind) for values, kind in zip(columns, _SCHEMA.types, strict=True)]
    location.write_table(pa.table(arrays, schema=_SCHEMA))


def _read_counts(location: Location, work_units: Sequence[WorkUnit]) -> dict[str, int]:
    """The stored counts of sources that have not changed."""
    if not location.exists():
        return {}
    kept = {tuple(row[:3]): row[3] for row in zip(*(c.to_pylist() for c in location.read_table()), strict=True)}
    return {
        work_unit.unit: kept[place]
        for work_unit in work_units
        if (place := (work_unit.unit, work_unit.size_bytes, work_unit.modified_unix_seconds)) in kept
    }
