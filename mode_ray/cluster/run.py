"""The cluster stage: one Ray task fits the clustering and saves it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from mode_ray.config import RunConfig
from mode_ray.errors import ModeRayError
from mode_ray.stage import Manifest, Stage, UnitRecord
from mode_ray.storage import Location


def run_cluster(
    config: RunConfig, stage: Stage, embeddings: Location, on_record: Callable[[UnitRecord], None]
) -> Manifest:
    """Run the cluster stage in a Ray task of its own, so that it finds the CPU it needs wherever that is.

    Raises:
        DataError: Fewer distinct embeddings than centers.
    """
    stage.begin(1)
    # max_calls: a process that has fitted a clustering is too large to idle.
    task = ray.remote(num_cpus=config.cluster.threads.cpus, max_calls=1)(_fit_and_save).options(name="cluster")
    try:
        summary = ray.get(task.remote(config, embeddings, stage.directory))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ModeRayError):
            raise error.cause from None
        raise
    rows = int(summary["sample_rows"])
    record = UnitRecord(unit="clustering", source=embeddings.uri, rows_in=rows, rows_out=rows, attempt=stage.attempt)
    on_record(record)
    return stage.finish([record], summary)


def _fit_and_save(config: RunConfig, embeddings: Location, directory: Location) -> dict[str, Any]:
    from mode_ray.cluster.fit import fit_clustering  # needs torch, which the driver has no use for

    clustering, summary = fit_clustering(config, embeddings)
    replace(clustering, training=summary).save(directory)
    return summary
