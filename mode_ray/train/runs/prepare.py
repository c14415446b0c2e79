"""Writes the training set of a trial before its trainer starts."""

import hashlib
from typing import Any

import ray

from mode_ray.config.base import ActorPool
from mode_ray.config.train import TrainPlacement
from mode_ray.errors import DataError, WorkerError
from mode_ray.pairs.materialise import MaterialiseWorker
from mode_ray.stages.execute import UnitWork, run_units
from mode_ray.train.runs.trial import TrialJob
from mode_ray.train.runs.trial_data import TrialData
from mode_ray.util.ray_tasks import task_result

_ATTEMPTS = 5


def prepare_training_set(job: TrialJob) -> None:
    """Write the missing parts of a trial's training set.

    Raises:
        DataError: The set is empty, or a source shard cannot be read.
        WriteError: The set cannot be written.
    """
    data = TrialData(job)
    data.write_index()
    if not data.is_materialised or data.materialised().is_done():
        return
    folder = data.materialised().folder.uri
    # The name makes launchers that need the same set share one actor: seed and dense run use the same set.
    name = f"mode_ray materialise {hashlib.blake2b(folder.encode(), digest_size=8).hexdigest()}"
    for _ in range(_ATTEMPTS):
        try:
            actor: Any = ray.remote(_Materialiser).options(name=name, get_if_exists=True, num_cpus=0).remote()
            task_result(actor.run.remote(job))
        except ray.exceptions.RayActorError:
            continue  # it ended with the launcher that had started it
        else:
            return
    raise WorkerError(f"{folder}: the process that materialises it died {_ATTEMPTS} times; run again")


class _Materialiser:
    """Materialises one set at a time. The second launcher of a set finds it complete."""

    def run(self, job: TrialJob) -> None:
        """Materialise the trial's training set."""
        materialise(job)


def materialise(job: TrialJob) -> None:
    """Copy a trial's training set to its own tars, with actors that use the resources of the trial's workers.

    Raises:
        DataError: A source shard cannot be read.
        WriteError: A tar cannot be written.
    """
    data, placement = TrialData(job), job.config.train.placement
    tars = data.materialised()
    if tars.is_done():
        return
    count = tars.begin(len(data.open_source()), readers(placement))
    arguments = (tars.source, job.config.captions, tars.block_pairs, count)
    actors = max(1, placement.workers_per_run)
    pool = ActorPool(min_actors=actors, max_actors=actors, cpus_per_actor=placement.cpus_per_worker)
    work = UnitWork(MaterialiseWorker, arguments, pool)
    records = run_units(tars.left(count), work, tars.folder, tars.stage.attempt, lambda _: None)
    failed = next((record.error for record in records.values() if record.error is not None), None)
    if failed is not None:
        raise DataError(failed)
    tars.finish(count)


def readers(placement: TrainPlacement) -> int:
    """The largest number of processes that read a run's tars concurrently."""
    workers = max(1, placement.max_workers_per_run or placement.workers_per_run)
    return workers * max(1, placement.loader_processes)
