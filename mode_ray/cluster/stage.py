"""The cluster stage: a Ray task fits the clustering, on a sample that it or actors of its own hold."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from mode_ray.cluster.fit_clock import SECONDS_BY_PART, FitClock
from mode_ray.config.run import RunConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.run_directory import FIT_PROGRESS
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord
from mode_ray.storage import Location
from mode_ray.util.ray_tasks import task_result

_LOOK_SECONDS = 2.0


def run_cluster(
    config: RunConfig,
    stage: Stage,
    embeddings: Location,
    on_record: Callable[[UnitRecord], None],
    say: Callable[[str], None],
    on_iteration: Callable[[Mapping[str, Any], int], None] = lambda *_: None,
) -> Manifest:
    """Run the cluster stage in a Ray task of its own, so that it finds the CPU it needs wherever that is.

    Args:
        config: The run's config.
        stage: The stage.
        embeddings: Directory of the embedding shards.
        on_record: Called with the stage's one record.
        say: Called with a line of text where there is something to wait for.
        on_iteration: Called with the newest `IterationReport` and the most iterations, now and then and at the end.

    Raises:
        DataError: Fewer distinct embeddings than centers.
    """
    stage.begin(1)
    _say_if_too_few_cpus(config, say)
    began = time.monotonic()
    # max_calls: a process that has fitted a clustering is too large to idle.
    task = ray.remote(num_cpus=config.cluster.placement.cpus, max_calls=1)(_fit_and_save).options(name="cluster")
    fitting = task.remote(config, embeddings, stage.directory)
    seen = 0
    while not ray.wait([fitting], timeout=_LOOK_SECONDS)[0]:
        report = _newest_report(stage.directory)
        if report is not None and report["iteration"] != seen:
            seen = report["iteration"]
            on_iteration(report, config.cluster.fine.iterations)
    summary = task_result(fitting)
    if summary["last_iteration"]["iteration"] != seen:
        on_iteration(summary["last_iteration"], config.cluster.fine.iterations)
    rows = int(summary["sample_rows"])
    record = UnitRecord(
        unit="clustering",
        source=embeddings.uri,
        rows_in=rows,
        rows_out=rows,
        seconds=round(time.monotonic() - began, 3),
        attempt=stage.attempt,
    )
    on_record(record)
    return stage.finish([record], summary)


def _say_if_too_few_cpus(config: RunConfig, say: Callable[[str], None]) -> None:
    """Actors that find no room wait, for an autoscaler maybe: without a word that would look like a fit that hangs."""
    placement, there = config.cluster.placement, float(ray.cluster_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]
    wanted = placement.cpus * (1 + (placement.workers if placement.workers > 1 else 0))
    if wanted > there:
        say(
            f"[cluster] needs {wanted:g} CPUs, the cluster has {there:g}: waiting for more to join; where none will, "
            "lower cluster.placement.workers or cluster.placement.cpus"
        )


def _newest_report(directory: Location) -> dict[str, Any] | None:
    try:
        report: dict[str, Any] = json.loads((directory / FIT_PROGRESS).read_text())
    except FileNotFoundError:
        return None
    return report


def _fit_and_save(config: RunConfig, embeddings: Location, directory: Location) -> dict[str, Any]:
    from mode_ray.cluster.both_steps import fit_clustering
    from mode_ray.cluster.fit.actors import ActorRows  # these need torch, which the driver has no use for
    from mode_ray.cluster.fit.sample import plan_sample, read_sample
    from mode_ray.cluster.fit.sample_rows import LocalRows, SampleRows

    cluster, clock = config.cluster, FitClock()
    parts = plan_sample(embeddings, cluster.sample_rows, cluster.seed)
    sample: SampleRows
    if cluster.placement.workers == 1:
        sample = LocalRows(read_sample(embeddings, parts, cluster.seed), cluster.placement.threads)
        clock.ended("read")
    else:
        sample = ActorRows(embeddings, parts, cluster.seed, cluster.placement)
    figures = fit_clustering(sample, cluster, encoder_name(config.encoder), directory, clock)
    return {**figures, SECONDS_BY_PART: clock.figures()}
