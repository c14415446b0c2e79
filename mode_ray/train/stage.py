"""The train stage: seed, dense baseline and experts, each an independent Ray Train run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import ray

from mode_ray.assign.counts import fine_counts
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.base import fingerprint_fields
from mode_ray.errors import TrainingError, UsageError
from mode_ray.models.check import check_architecture
from mode_ray.pairs.training_set import write_set_units
from mode_ray.run_directory import PLAN_FILE, WORK_UNITS_FILE
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord
from mode_ray.stages.run import Run, StageReport
from mode_ray.stages.work_unit import require_images
from mode_ray.train.plan import Trial, budget_statement, expert_name, plan_trials, slow_experts, small_trials
from mode_ray.train.reuse import Takeover, copy_models, plan_takeover
from mode_ray.train.runs.lease import Lease
from mode_ray.train.runs.queue import TrialQueue
from mode_ray.train.runs.status import TrialStatus, initial_statuses, stored_statuses, waiting_again
from mode_ray.train.runs.stop import sigterm_as_exit
from mode_ray.train.runs.trackers import check_trackers
from mode_ray.train.runs.trial import TrialJob
from mode_ray.util.ray_tasks import task_result


def train_fields(run: Run) -> dict[str, object]:
    """The fields that decide the models."""
    return {**fingerprint_fields(run.config.train, "train"), **fingerprint_fields(run.config.images, "images")}


def run_train(run: Run, stage: Stage, report: StageReport) -> Manifest:
    """Train everything the config asks for, or what is left of it.

    Raises:
        UsageError: The architecture or checkpoint does not exist, shards hold captions only, or the run that
            `train.reuse` names has no models for this one.
        TrainingError: A trial failed permanently; the others were finished. Or another driver trains this run.
    """
    training = begin_training(run, stage)
    report.say(f"[train] {budget_statement(run.config.train, training.trials).line()}")
    slow = slow_experts(run.config.train)
    for line in [*small_trials(run.config.train, training.trials, training.pairs_n), *([slow] if slow else [])]:
        report.say(f"[train] warning: {line}")
    with Lease(stage.directory, partial(_say, report)) as lease:
        statuses = training.run(training.trials, initial_statuses(training.trials, stage.directory), lease, report)
    failed = [status for status in statuses.values() if status.state == "failed"]
    if failed:
        reasons = "\n".join(f"  {status.trial}: {status.reason}" for status in failed)
        raise TrainingError(
            f"train: {len(failed)} of {len(training.trials)} runs failed (the others are finished):\n{reasons}\n"
            "Fix the cause and run again: only the failed ones continue, from their last checkpoints"
        )
    return training.finish(statuses)


def retry_trial(run: Run, stage: Stage, name: str, report: StageReport) -> Manifest | None:
    """Train one trial alone and forget its failure; the others stay as they are.

    Args:
        run: The run.
        stage: The train stage.
        name: The trial's name, or the number of an expert.
        report: Takes what happens.

    Returns:
        The stage's manifest if this was the last trial that was missing, else None.

    Raises:
        UsageError: There is no such trial, it is finished, or the one that it continues is not.
        TrainingError: It failed again. Or another driver trains this run.
    """
    training = begin_training(run, stage)
    trial = _named(training.trials, run.config.train.experts, name)
    with Lease(stage.directory, partial(_say, report)) as lease:
        statuses = stored_statuses(training.trials, stage.directory)
        if statuses[trial.name].state == "finished":
            raise UsageError(f"{trial.name} is finished: there is nothing to retry")
        if trial.parent is not None and statuses[trial.parent].state != "finished":
            raise UsageError(f"{trial.name} continues {trial.parent}, which is not finished: retry that one first")
        own = {name: status for name, status in statuses.items() if name in (trial.name, trial.parent)}
        own[trial.name] = waiting_again(own[trial.name])
        statuses |= training.run([trial], own, lease, report)
    status = statuses[trial.name]
    if status.state == "failed":
        raise TrainingError(f"{trial.name}: {status.reason}")
    if all(status.state == "finished" for status in statuses.values()):
        return training.finish(statuses)
    return None


def planned_trials(run: Run, clustering: Clustering) -> tuple[list[Trial], np.ndarray]:
    """The stage's trials in order of priority, and the pairs of each expert."""
    n = run.config.train.experts
    label_selector = run.config.assign.pool.required_labels
    counts_m = fine_counts(run.assignments, run.work_units, len(clustering.centers_md), label_selector)
    pairs_n = np.bincount(clustering.coarse[n], weights=counts_m, minlength=n).astype(np.int64)
    return plan_trials(run.config.train, pairs_n, clustering.widest_first(n)), pairs_n


@dataclass(frozen=True)
class _Training:
    """A train stage that was begun.

    Attributes:
        of: The run.
        stage: The train stage.
        takeover: All trials, and those that are reused from another run.
        pairs_n: Pairs of every expert.
    """

    of: Run
    stage: Stage
    takeover: Takeover
    pairs_n: np.ndarray

    @property
    def trials(self) -> Sequence[Trial]:
        """All trials, the reused ones included."""
        return self.takeover.trials

    def run(
        self, trials: Sequence[Trial], statuses: dict[str, TrialStatus], lease: Lease, report: StageReport
    ) -> dict[str, TrialStatus]:
        """Run some of the trials, starting from these statuses."""
        from mode_ray.train.runs.scheduler import run_trials  # imports Ray Train

        config = self.of.config
        placement = config.train.placement
        jobs = {
            trial.name: TrialJob(trial, config, self.of.assignments, self.of.clusters, self.stage.directory)
            for trial in self.trials
            if trial.name in statuses
        }
        queue = TrialQueue(trials, statuses, placement.concurrent_runs, placement.max_launches)
        with report.watching_trials() as on_change, sigterm_as_exit():
            return run_trials(jobs, queue, on_change, lease.check, partial(_say, report))

    def finish(self, statuses: Mapping[str, TrialStatus]) -> Manifest:
        """Write the stage's manifest: all trials are finished."""
        records = [_record(trial, statuses[trial.name], self.stage) for trial in self.trials]
        return self.stage.finish(records, self.summary)

    @property
    def summary(self) -> dict[str, Any]:
        """What is trained, on what, for how long."""
        return {
            "trials": [asdict(trial) for trial in self.trials],
            "pairs_by_expert": self.pairs_n.tolist(),
            "budget": asdict(budget_statement(self.of.config.train, self.trials)),
            "reuse": self.takeover.summary,
        }


def _say(report: StageReport, text: str) -> None:
    report.say(f"[train] {text}")


def begin_training(run: Run, stage: Stage) -> _Training:
    """Plan all trials and write what launchers and evaluations read; nothing is trained yet."""
    config = run.config.train
    require_images(run.work_units)
    check_architecture(config.model)
    check_trackers(config.placement.trackers)
    clustering = Clustering.load(run.clusters)
    planned, pairs_n = planned_trials(run, clustering)
    takeover = plan_takeover(config, planned, clustering, stage.directory, run.clusters)
    stage.begin(len(takeover.trials))
    write_set_units(stage.directory / WORK_UNITS_FILE, run.work_units)
    if takeover.sources:
        # In a task: models and optimizers are large, and the driver stays small.
        task_result(ray.remote(max_calls=1)(copy_models).remote(takeover, stage.directory))
    training = _Training(run, stage, takeover, pairs_n)
    # For evaluations without an expert that failed permanently: the manifest exists only once all are finished.
    (stage.directory / PLAN_FILE).write_text(json.dumps(training.summary, indent=1))
    return training


def _named(trials: Sequence[Trial], experts: int, name: str) -> Trial:
    wanted = expert_name(experts, int(name)) if name.isdecimal() else name
    found = {trial.name: trial for trial in trials}.get(wanted)
    if found is None:
        raise UsageError(f"{name}: no such run; there are {', '.join(trial.name for trial in trials)}")
    return found


def _record(trial: Trial, status: TrialStatus, stage: Stage) -> UnitRecord:
    return UnitRecord(
        unit=trial.name,
        source=(stage.directory / trial.name).uri,
        rows_in=trial.samples,
        rows_out=trial.samples,
        seconds=status.seconds,
        attempt=stage.attempt,
    )
