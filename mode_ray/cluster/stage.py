"""The cluster stage: a Ray task fits the clustering, on a sample that it or actors of its own hold."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from mode_ray.cluster.fit.sizes import TARGET_MAX_OVER_MEAN
from mode_ray.cluster.fit_clock import SECONDS_BY_PART, FitClock
from mode_ray.cluster.quantiles import training_quantiles
from mode_ray.cluster.reuse import CONTENT_FIELD, find_reused, run_reuse
from mode_ray.config.base import fingerprint_fields
from mode_ray.config.cluster import ClusterPlacement, FineConfig
from mode_ray.config.run import RunConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.run_directory import FIT_PROGRESS
from mode_ray.stages.dashboard_names import shown_name
from mode_ray.stages.execute import cluster_resources
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord, read_manifest
from mode_ray.stages.run import Run, StageReport
from mode_ray.storage import Location
from mode_ray.util.ray_tasks import process_kept, task_result

_LOOK_SECONDS = 2.0
_SMALL_FIT_ROWS = 100_000


def cluster_fields(run: Run) -> dict[str, object]:
    """The fields that decide the clustering: those of a fit, or the content of the reused one."""
    if run.config.reuses_clustering:
        return {CONTENT_FIELD: find_reused(run.config, run.clusters).content_hash}
    fields = fingerprint_fields(run.config.cluster, "cluster")
    del fields["cluster.reuse"]
    return fields


def run_cluster(run: Run, stage: Stage, report: StageReport) -> Manifest:
    """Fit a clustering, or copy the one that the config reuses.

    Raises:
        UsageError: The reused clustering has no map for `train.experts`, or changed while this run worked.
        DataError: Fewer distinct embeddings than centers; the reused clustering is missing, damaged, or was made with
            another encoder.
    """
    if not run.config.reuses_clustering:
        return _fit(run, stage, report)
    reused = find_reused(run.config, run.clusters)
    training_quantiles(reused.clustering)  # the drift report needs them; a lack shows before captions are assigned
    report.say(f"[cluster] reused clustering of {reused.source}, content {reused.content_hash}")
    return run_reuse(run.config, stage, reused, report.unit)


def _fit(run: Run, stage: Stage, report: StageReport) -> Manifest:
    """Fit in a Ray task of its own, so that it gets its CPUs on whichever node has them."""
    config = run.config.cluster
    stage.begin(1)
    _say_if_too_little_room(config.placement, report.say)
    began = time.monotonic()
    fitting = _fitting_task(run).remote(run.config, run.embeddings, stage.directory)
    fit = FitProgress(config.fine, report)
    while not ray.wait([fitting], timeout=_LOOK_SECONDS)[0]:
        newest = _newest_report(stage.directory)
        if newest is not None:
            fit.take(newest)
    summary = task_result(fitting)
    fit.take({**summary["last_iteration"], "extended_from": summary.get("extended_from")})
    if config.fine.balanced:
        report.say(f"[cluster] {balance_line(summary)}")
    rows = int(summary["sample_rows"])
    record = UnitRecord(
        unit="clustering",
        source=run.embeddings.uri,
        rows_in=rows,
        rows_out=rows,
        seconds=round(time.monotonic() - began, 3),
        attempt=stage.attempt,
    )
    report.unit(record)
    return stage.finish([record], summary)


def _fitting_task(run: Run) -> Any:  # noqa: ANN401 - Ray's type has no name
    placement, embedded = run.config.cluster.placement, read_manifest(run.embeddings)
    task = ray.remote(
        num_cpus=placement.cpus,
        num_gpus=placement.gpus if placement.workers == 1 else 0.0,
        **process_kept(embedded is not None and embedded.rows_out <= _SMALL_FIT_ROWS),
    )
    return task(_fit_and_save).options(
        name=f"cluster {shown_name(run.directory)}", label_selector=placement.required_labels
    )


class FitProgress:
    """Reports each iteration once, and that a fit continues because its balance was missed."""

    def __init__(self, fine: FineConfig, report: StageReport) -> None:
        self._iterations = fine.iterations
        self._report = report
        self._seen = 0
        self._is_extended = False

    def take(self, newest: Mapping[str, Any]) -> None:
        """Report the newest iteration, if it is new."""
        done = newest["extended_from"]
        if done is not None and not self._is_extended:
            self._is_extended = True
            self._report.say(
                f"[cluster] not balanced after {done} iterations: continuing, for up to {self._iterations} more"
            )
        if newest["iteration"] != self._seen:
            self._seen = newest["iteration"]
            self._report.iteration(newest, self._iterations + (done or 0))


def balance_line(summary: Mapping[str, Any]) -> str:
    """One line about the cluster sizes of a finished balanced fit, from its summary."""
    largest = f"the largest cluster has {summary['fitted_max_over_mean']:.2f} x the mean"
    if "balance_score" not in summary:
        return f"balanced: {largest}"
    return (
        f"not balanced after {summary['iterations']} iterations: {largest}, the target is {TARGET_MAX_OVER_MEAN:g}. "
        "Equal captions cannot be divided. Lower cluster.fine.centers or add captions if the sizes matter; the "
        "clustering is valid as it is"
    )


def _say_if_too_little_room(placement: ClusterPlacement, say: Callable[[str], None]) -> None:
    """Actors that find no room wait, for an autoscaler maybe: without a word that would look like a fit that hangs."""
    there = cluster_resources()["CPU"]
    wanted = placement.cpus * (1 + (placement.workers if placement.workers > 1 else 0))
    if wanted > there:
        say(
            f"[cluster] needs {wanted:g} CPUs, the cluster has {there:g}: waiting for more to join; where none will, "
            "lower cluster.placement.workers or cluster.placement.cpus"
        )
    gpus, there = placement.gpus * placement.workers, cluster_resources()["GPU"]
    if gpus > there:
        say(
            f"[cluster] needs {gpus:g} GPUs, the cluster has {there:g}: waiting for more to join; where none will, "
            "lower cluster.placement.workers or cluster.placement.gpus"
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
    from mode_ray.cluster.fit.device_rows import sample_rows
    from mode_ray.cluster.fit.sample import plan_sample, read_sample
    from mode_ray.cluster.fit.sample_rows import SampleRows

    cluster, clock = config.cluster, FitClock()
    parts = plan_sample(embeddings, cluster.sample_rows, cluster.seed)
    sample: SampleRows
    if cluster.placement.workers == 1:
        sample = sample_rows(read_sample(embeddings, parts, cluster.seed), cluster.placement)
        clock.ended("read")
    else:
        sample = ActorRows(embeddings, parts, cluster.seed, cluster.placement)
    figures = fit_clustering(sample, cluster, encoder_name(config.encoder), directory, clock)
    return {**figures, SECONDS_BY_PART: clock.figures()}
