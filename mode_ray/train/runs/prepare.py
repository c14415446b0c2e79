"""Writes the training set of a trial before its trainer starts."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray

from mode_ray.config.base import ActorPool
from mode_ray.config.train import TrainPlacement
from mode_ray.errors import DataError, WorkerError
from mode_ray.pairs.index_files import UNITS_PER_PART, in_this_process
from mode_ray.stages.journal import RecordJournal
from mode_ray.train.runs.trial import TrialJob
from mode_ray.train.runs.trial_data import TrialData
from mode_ray.train.runs.waiting import MachinesMissingError
from mode_ray.util.ray_tasks import cancel_unfinished, task_result

_ATTEMPTS = 5


def prepare_training_set(job: TrialJob) -> None:
    """Write the missing parts of a trial's training set.

    Raises:
        DataError: The set is empty, or a source shard cannot be read.
        WriteError: The set cannot be written.
    """
    data, run_parts = TrialData(job), partial(on_cluster, job.config.train.placement)
    data.write_index(run_parts)
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


def on_cluster(placement: TrainPlacement, function: Callable[[range], Any], parts: Sequence[range]) -> list[Any]:
    """Run the parts of an index in Ray tasks, in the place of the run's workers; a small index in this process.

    Raises:
        MachinesMissingError: No machine for them came within `on_demand_after_seconds`.
    """
    if len(parts) == 1 and len(parts[0]) <= UNITS_PER_PART:
        return in_this_process(function, parts)
    options: dict[str, Any] = {
        "num_cpus": placement.cpus_per_worker,
        "label_selector": placement.required_labels,
        "retry_exceptions": [OSError],
        "name": "training set",
    }
    if placement.on_demand_after_seconds is not None:
        _wait_for_a_machine(options, placement.on_demand_after_seconds)
    task, shared = ray.remote(_run_part).options(**options), ray.put(function)
    references = [task.remote(shared, part) for part in parts]
    try:
        return [task_result(reference) for reference in references]
    finally:
        cancel_unfinished(references)


def _wait_for_a_machine(options: Mapping[str, Any], limit_seconds: float) -> None:
    reference = ray.remote(_nothing).options(**options).remote()
    if not ray.wait([reference], timeout=limit_seconds)[0]:
        cancel_unfinished([reference])
        raise MachinesMissingError(limit_seconds)


def _nothing() -> None:
    """A task that only needs a machine."""


def _run_part(function: Callable[[range], Any], part: range) -> Any:  # noqa: ANN401 - each function's own
    return function(part)


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
    # These import Ray Data, which a launcher does not need.
    from mode_ray.pairs.materialise import MaterialiseWorker
    from mode_ray.stages.execute import UnitWork, run_units

    data, placement = TrialData(job), job.config.train.placement
    tars = data.materialised()
    if tars.is_done():
        return
    count = tars.begin(len(data.open_source()), readers(placement))
    arguments = (tars.source, job.config.captions, tars.block_pairs, count)
    actors = max(1, placement.workers_per_run)
    pool = ActorPool(min_actors=actors, max_actors=actors, cpus_per_actor=placement.cpus_per_worker)
    work = UnitWork(MaterialiseWorker, arguments, pool)
    with RecordJournal(tars.folder, tars.stage.attempt) as journal:
        records = run_units(tars.left(count), work, tars.folder, tars.stage.attempt, journal.add)
    failed = next((record.error for record in records.values() if record.error is not None), None)
    if failed is not None:
        raise DataError(failed)
    tars.finish(count, partial(on_cluster, placement))


def readers(placement: TrainPlacement) -> int:
    """The largest number of processes that read a run's tars concurrently."""
    workers = max(1, placement.max_workers_per_run or placement.workers_per_run)
    return workers * max(1, placement.loader_processes)
