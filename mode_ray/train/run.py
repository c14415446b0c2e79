"""The train stage: seed, dense baseline and experts, each an independent Ray Train run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import ray

from mode_ray.captions.shards import Shard, require_images, write_shards
from mode_ray.cluster.clustering import Clustering
from mode_ray.config import RunConfig
from mode_ray.errors import TrainingError
from mode_ray.expert_data import fine_counts, load_index
from mode_ray.stage import Manifest, Stage, UnitRecord
from mode_ray.storage import Location
from mode_ray.task_result import task_result
from mode_ray.train.architecture import check_architecture
from mode_ray.train.budget import Trial, plan_trials
from mode_ray.train.scheduler import TrialQueue, TrialStatus, initial_statuses, run_trials
from mode_ray.train.standing import copy_models, plan_takeover
from mode_ray.train.trial import SHARDS_FILE, TrialJob


def run_train(
    config: RunConfig,
    stage: Stage,
    shards: Sequence[Shard],
    clusters: Location,
    assignments: Location,
    on_change: Callable[[Mapping[str, TrialStatus]], None],
) -> Manifest:
    """Train everything the config asks for, or what is left of it.

    Raises:
        UsageError: The architecture or checkpoint does not exist, shards hold captions only, or the run that
            `train.standing` names has no models for this one.
        TrainingError: A trial failed for good; the others were finished.
    """
    require_images(shards)
    check_architecture(config.train.model)
    clustering = Clustering.load(clusters)
    planned, pairs_n = planned_trials(config, clustering, assignments, shards)
    takeover = plan_takeover(config.train, planned, clustering, stage.directory, clusters)
    trials = takeover.trials
    stage.begin(len(trials))
    write_shards(stage.directory / SHARDS_FILE, shards)
    if takeover.sources:
        # In a task: models and optimizers are large, and the driver stays small.
        task_result(ray.remote(max_calls=1)(copy_models).remote(takeover, stage.directory))
    jobs = {trial.name: TrialJob(trial, config, assignments, clusters, stage.directory) for trial in trials}
    placement = config.train.placement
    statuses = initial_statuses(trials, stage.directory)
    queue = TrialQueue(trials, statuses, placement.concurrent_runs, placement.max_launches)
    statuses = run_trials(jobs, queue, placement, on_change)
    failed = [status for status in statuses.values() if status.state == "failed"]
    if failed:
        reasons = "\n".join(f"  {status.trial}: {status.reason}" for status in failed)
        raise TrainingError(
            f"train: {len(failed)} of {len(trials)} runs failed (the others are finished):\n{reasons}\n"
            "Mend the cause and run again: only the failed ones go on, from their last checkpoints"
        )
    records = [_record(trial, statuses[trial.name], stage) for trial in trials]
    summary = {
        "trials": [asdict(trial) for trial in trials],
        "pairs_by_expert": pairs_n.tolist(),
        "standing": takeover.summary,
    }
    return stage.finish(records, summary)


def planned_trials(
    config: RunConfig, clustering: Clustering, assignments: Location, shards: Sequence[Shard]
) -> tuple[list[Trial], np.ndarray]:
    """The stage's trials in order of priority, and the pairs of each expert."""
    n = config.train.experts
    counts_m = fine_counts(load_index(assignments, shards), len(clustering.centers_md))
    pairs_n = np.bincount(clustering.coarse[n], weights=counts_m, minlength=n).astype(np.int64)
    return plan_trials(config.train, pairs_n, clustering.widest_first(n)), pairs_n


def _record(trial: Trial, status: TrialStatus, stage: Stage) -> UnitRecord:
    return UnitRecord(
        unit=trial.name,
        source=(stage.directory / trial.name).uri,
        rows_in=trial.samples,
        rows_out=trial.samples,
        seconds=status.seconds,
        attempt=stage.attempt,
    )
