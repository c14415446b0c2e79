"""The drift report of a run: Ray tasks tally the assignments, and the driver compares the sums."""

import json
from dataclasses import asdict

import ray

from mode_ray.assign.table import DISTANCE, FINE, read_assignments
from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError, UsageError
from mode_ray.new_data.compare import DriftReport, compare
from mode_ray.new_data.tally import AssignmentTally, far_distance, far_mask
from mode_ray.run_directory import DRIFT_FILE
from mode_ray.stages.manifest import Manifest, read_manifest, read_units
from mode_ray.stages.run import Run
from mode_ray.storage import Location
from mode_ray.util.ray_tasks import task_result

_MOST_TASKS = 1024


def run_drift(run: Run) -> DriftReport:
    """Compare a run's assigned captions with the fitted sample, and write `drift.json` to the assignments' directory.

    Raises:
        UsageError: The assign stage is not done, or the clustering does not have the configured quantile.
        DataError: The clustering has no quantiles, or an assignment file is damaged.
    """
    manifest = finished_assignments(run.assignments)
    clustering, far_quantile = Clustering.load(run.clusters), run.config.drift.far_quantile
    tally, _ = tally_assignments(run, len(clustering.centers_md), far_distance(clustering, far_quantile))
    priced = manifest.fields.get("assign.rule") == "priced"
    report = compare(clustering, tally, far_quantile, priced)
    (run.assignments / DRIFT_FILE).write_text(json.dumps(asdict(report), indent=1))
    return report


def finished_assignments(assignments: Location) -> Manifest:
    """The manifest of a run's assignments.

    Raises:
        UsageError: The assign stage is not done.
    """
    manifest = read_manifest(assignments)
    if manifest is None:
        raise UsageError(f"{assignments}: the assign stage is not done: run `mode-ray assign` first")
    return manifest


def tally_assignments(run: Run, m: int, far: float) -> tuple[AssignmentTally, dict[str, int]]:
    """Tally all assigned captions. Each Ray task reads two columns of some units.

    Returns:
        The tally, and the number of far captions of each unit that has any.

    Raises:
        DataError: An assignment file is missing, damaged, or from another clustering.
    """
    assignments, label_selector = run.assignments, run.config.assign.pool.required_labels
    rows_by_unit = {record.unit: record.rows_out for record in read_units(assignments) if record.error is None}
    units = sorted(rows_by_unit)
    units_per_task = max(1, -(-len(units) // _MOST_TASKS))
    remote = ray.remote(_tally_units).options(name="drift", label_selector=label_selector, retry_exceptions=[OSError])
    pending = [
        remote.remote(
            assignments, {unit: rows_by_unit[unit] for unit in units[start : start + units_per_task]}, m, far
        )
        for start in range(0, len(units), units_per_task)
    ]
    tally, far_by_unit = AssignmentTally.empty(m), dict[str, int]()
    while pending:
        ready, pending = ray.wait(pending, num_returns=1)
        part, far_part = task_result(ready[0])
        tally += part
        far_by_unit |= far_part
    return tally, far_by_unit


def _tally_units(
    assignments: Location, rows_by_unit: dict[str, int], m: int, far: float
) -> tuple[AssignmentTally, dict[str, int]]:
    tally, far_by_unit = AssignmentTally.empty(m), dict[str, int]()
    for unit, rows in rows_by_unit.items():
        table = read_assignments(assignments, unit, [FINE, DISTANCE])
        if table.num_rows != rows:
            raise DataError(f"{assignments}/{unit}.parquet: {table.num_rows} rows, but {rows} were assigned")
        distance_b = table[DISTANCE].to_numpy()
        tally += AssignmentTally.count(unit, table[FINE].to_numpy(), distance_b, m, far)
        far_rows = int(far_mask(distance_b, far).sum())
        if far_rows:
            far_by_unit[unit] = far_rows
    return tally, far_by_unit
