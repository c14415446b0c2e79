"""Extends a copy of a run's clustering by new centers for its far captions."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import ray

from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.reuse import ReusedClustering, read_reused
from mode_ray.errors import UsageError
from mode_ray.new_data.drift import finished_assignments, tally_assignments
from mode_ray.new_data.far_captions import FarSample, collect_far, read_far
from mode_ray.new_data.new_centers import FarCaptions, check_new_expert, extended, fit_new_centers
from mode_ray.new_data.tally import far_distance
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.run import Run
from mode_ray.storage import Location
from mode_ray.util.ray_tasks import task_result
from mode_ray.util.sampling import allocate_sample


@dataclass(frozen=True, kw_only=True)
class ExtensionRequest:
    """The requested extension.

    Attributes:
        centers: Number of new centers, k.
        target: Directory of the new clustering; it must be empty or not exist.
        far_quantile: See `DriftConfig.far_quantile`.
        new_expert: Whether to create a map with one more expert than `train.experts`, which owns the new centers.
    """

    centers: int
    target: Location
    far_quantile: float
    new_expert: bool


def run_extension(run: Run, request: ExtensionRequest, on_record: Callable[[UnitRecord], None]) -> Clustering:
    """Write a clustering with new centers for a run's far captions; the run's clustering is not changed.

    The embeddings of the far captions are collected unit by unit in `far_captions/` of the run, so that an interrupted
    extension resumes there.

    Raises:
        UsageError: The assign stage is not done, the target is not empty, or no expert can be added.
        DataError: There are too few far captions, or files have changed since they were assigned.
    """
    config, assigned = run.config, finished_assignments(run.assignments)
    if request.centers < 1:
        raise UsageError(f"--centers {request.centers}: must be at least 1")
    if request.target.files(recursive=True):
        raise UsageError(
            f"{request.target}: not empty; a clustering is never changed in place: choose another directory"
        )
    reused = read_reused(run.clusters)
    parent = reused.clustering
    if request.new_expert:
        check_new_expert(parent, config.train.experts)
    m, far = len(parent.centers_md), far_distance(parent, request.far_quantile)
    tally, far_by_unit = tally_assignments(run, m, far)
    count = FarCaptions(tally.rows, tally.far_rows, request.far_quantile, far)
    count.check_enough(tally.far_rows, request.centers)
    cluster = config.cluster
    sample = FarSample(far, allocate_sample(far_by_unit, cluster.sample_rows, cluster.seed), cluster.seed)
    collected = collect_far(run, sample, assigned.content_hash, on_record)
    # max_calls: after a fit, the process holds too much memory to stay idle.
    task = ray.remote(num_cpus=cluster.placement.cpus, max_calls=1)(_fit_and_save).options(
        name="cluster extend", label_selector=cluster.placement.required_labels
    )
    task_result(task.remote(replace(run, work_units=()), request, collected, reused, count))
    return Clustering.load(request.target)


def _fit_and_save(
    run: Run,
    request: ExtensionRequest,
    collected: Location,
    reused: ReusedClustering,
    count: FarCaptions,
) -> None:
    config, parent = run.config, reused.clustering
    new = fit_new_centers(parent, read_far(collected), count, request.centers, config.cluster)
    beside = config.train.experts if request.new_expert else None
    provenance = {
        "parent": reused.source.uri,
        "parent_content_hash": reused.content_hash,
        "run": run.directory.uri,
        "first_center": len(parent.centers_md),
        "centers": request.centers,
        "new_expert_beside": beside,
        **asdict(count),
        "fitted_rows": new.fitted_rows,
        "distinct_rows": new.distinct_rows,
        "rows_nearer_to_old": new.rows_nearer_to_old,
    }
    extended(parent, new, beside, provenance).save(request.target)
