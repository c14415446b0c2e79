"""Processes work units on Ray: few of them in a task, many on a pool of actors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mode_ray.config.base import ActorPool
from mode_ray.stages.actor import UnitWorker
from mode_ray.stages.dashboard_names import shown_name
from mode_ray.stages.ledger import UnitLedger
from mode_ray.stages.manifest import UnitRecord, record_book
from mode_ray.stages.packed import PackedMapping
from mode_ray.stages.tasks import are_few, run_in_tasks
from mode_ray.stages.unit_job import UnitJob
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location


@dataclass(frozen=True)
class UnitWork:
    """What a stage does to its work units.

    Attributes:
        worker: Makes the worker, in each actor.
        arguments: Its arguments.
        pool: Size and resources of the pool.
        rows: What the work units hold, for messages.
    """

    worker: Callable[..., UnitWorker]
    arguments: Sequence[Any]
    pool: ActorPool
    rows: str = "captions"


def run_units(
    work_units: Sequence[WorkUnit],
    work: UnitWork,
    directory: Location,
    attempt: str,
    on_record: Callable[[UnitRecord], None],
) -> PackedMapping[UnitRecord]:
    """Process work units on Ray; an output is on storage when its record arrives.

    Actors that are lost, with or without their node, are replaced, and their unfinished tasks run again, up to
    `retries_per_unit` times. Units whose task was lost more often are tried once more, each in a task of its own.
    So a unit that kills its worker, for example by its use of memory, is quarantined alone.

    Args:
        work_units: The units to process.
        work: What to do with a unit.
        directory: Where the outputs are written.
        attempt: Name of the stage's invocation.
        on_record: Called with every record as it arrives.

    Returns:
        The records by unit, in order of arrival.

    Raises:
        WriteError: An output cannot be written.
        WorkerError: The workers die while they start.
        ModeRayError: The worker raised it.
        RuntimeError: A defect, with its traceback and the source file.
    """
    if not work_units:
        return record_book()
    directory.remove_temporaries()
    job = UnitJob(
        work.worker, tuple(work.arguments), directory, attempt, work.pool, name=shown_name(directory, parts=2)
    )
    ledger = UnitLedger(work_units, work.pool, attempt, on_record)
    run, units_per_task = _way_to_run(work_units, ledger)
    for record in run(work_units, job, units_per_task):
        ledger.take(record)
    if lost := ledger.lost():
        for record in run(lost, job, 1):
            ledger.take(record)
    ledger.give_up()
    return ledger.records


def _way_to_run(
    work_units: Sequence[WorkUnit], ledger: UnitLedger
) -> tuple[Callable[[Sequence[WorkUnit], UnitJob, int], Iterator[UnitRecord]], int]:
    """The function that runs units on Ray, and how many of them a task has at first."""
    if are_few(work_units):
        return run_in_tasks, len(work_units)
    from mode_ray.stages.pool import run_in_pool  # imports Ray Data, which takes a second

    return run_in_pool, ledger.units_per_task


def cluster_resources() -> dict[str, float]:
    """CPUs and GPUs of the Ray cluster, as it is now."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {name: float(resources.get(name, 0.0)) for name in ("CPU", "GPU")}
