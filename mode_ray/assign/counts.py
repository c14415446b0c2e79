"""Captions of every fine cluster, counted once and stored beside the assignments."""

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mode_ray.assign.table import FINE, read_assignments, units_with_output
from mode_ray.errors import DataError
from mode_ray.run_directory import FINE_COUNTS_FILE
from mode_ray.stages.manifest import read_manifest
from mode_ray.stages.work_unit import WorkUnit, WorkUnitTable
from mode_ray.storage import Location
from mode_ray.util.read_ahead import read_ahead

Int64Array = npt.NDArray[np.int64]

_UNITS_PER_TASK = 1024
_READERS = 16


def fine_counts(
    assignments: Location,
    work_units: Sequence[WorkUnit],
    centers: int,
    label_selector: dict[str, str] | None = None,
) -> Int64Array:
    """Captions of each fine cluster, int64 [m].

    They are counted at the end of the assign stage, or here for a run of a former version, and stored. Large runs
    are counted by Ray tasks, because each unit takes several requests.

    Args:
        assignments: Directory of the assign stage.
        work_units: All work units of the run.
        centers: m.
        label_selector: Node labels that the tasks require.

    Raises:
        DataError: There is no assignment at all, or a file is missing or damaged.
    """
    manifest, file = read_manifest(assignments), assignments / FINE_COUNTS_FILE
    stored = json.loads(file.read_text()) if file.exists() else {}
    if manifest is not None and stored.get("assignments") == manifest.content_hash:
        return np.array(stored["counts"], np.int64)
    counts_m = _counted(assignments, work_units, centers, label_selector)
    if manifest is not None:
        file.write_text(json.dumps({"assignments": manifest.content_hash, "counts": counts_m.tolist()}))
    return counts_m


def _counted(
    assignments: Location, work_units: Sequence[WorkUnit], centers: int, label_selector: dict[str, str] | None
) -> Int64Array:
    present = units_with_output(assignments)
    units = [unit for unit in WorkUnitTable.of(work_units).table["unit"].to_pylist() if unit in present]
    if not units:
        raise DataError(f"{assignments}: no assignment of the given shards; run `mode-ray assign` first")
    if len(units) <= _UNITS_PER_TASK:
        return _count(assignments, units, centers)
    import ray  # small runs are counted without it

    from mode_ray.util.ray_tasks import task_result

    task = ray.remote(_count).options(name="fine counts", retry_exceptions=[OSError], label_selector=label_selector)
    pending = [
        task.remote(assignments, units[start : start + _UNITS_PER_TASK], centers)
        for start in range(0, len(units), _UNITS_PER_TASK)
    ]
    counts_m = np.zeros(centers, np.int64)
    for reference in pending:
        counts_m += task_result(reference)
    return counts_m


def _count(assignments: Location, units: Sequence[str], centers: int) -> Int64Array:
    counts_m = np.zeros(centers, np.int64)
    tables = read_ahead(
        lambda unit: read_assignments(assignments, unit, [FINE]), units, ahead=_READERS, threads=_READERS
    )
    for assigned in tables:
        counts_m += np.bincount(assigned[FINE].to_numpy(), minlength=centers)
    return counts_m
