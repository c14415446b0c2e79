"""Works on few units in Ray tasks, one after another.

A pool needs seconds to start, and ends its processes with the stage. Ray keeps the process of a task for the next
task, so the stages of a small run share one process, and import what they need once.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.unit_job import UnitJob, UnitResult, UnitRunner, death_at_start
from mode_ray.stages.work_unit import WorkUnit

_MOST_UNITS = 8
_MOST_BYTES = 256 * 1024
_LOST = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)


def are_few(work_units: Sequence[WorkUnit]) -> bool:
    """Whether one process finishes units before a pool has started: a single unit, or a few small files."""
    if len(work_units) > _MOST_UNITS:
        return False
    sizes = [work_unit.size_bytes for work_unit in work_units]
    return len(sizes) == 1 or (all(sizes) and sum(sizes) <= _MOST_BYTES)


def run_in_tasks(work_units: Sequence[WorkUnit], job: UnitJob, units_per_task: int) -> Iterator[UnitRecord]:
    """The records of the units, as they are finished; none for units whose tasks were lost too often.

    If a task's process is lost, another task works on the units that are left.

    Raises:
        WorkerError: The workers die while they start.
        ModeRayError: The worker raised it.
        RuntimeError: A defect, with its traceback and the source file.
    """
    for start in range(0, len(work_units), units_per_task):
        yield from _run_in_task(work_units[start : start + units_per_task], job)


def _run_in_task(work_units: Sequence[WorkUnit], job: UnitJob) -> Iterator[UnitRecord]:
    pool, left = job.pool, {work_unit.unit: work_unit for work_unit in work_units}
    # Ray does not count a process that it ended for its memory as a retry: the retries are made here.
    task: Any = ray.remote(num_cpus=pool.cpus_per_actor, num_gpus=pool.gpus_per_actor, max_retries=0)(_run)
    task = task.options(name=job.name, label_selector=pool.required_labels, num_returns="streaming")
    has_worker = False
    for attempt in range(pool.retries_per_unit + 1):
        try:
            for reference in task.remote(list(left.values()), job):
                result: UnitResult | None = ray.get(reference)
                has_worker = True
                if result is not None:
                    record = result.of_driver()
                    del left[record.unit]
                    yield record
        except _LOST as error:
            if not has_worker and attempt == pool.retries_per_unit:
                raise death_at_start(error) from error
        else:
            return


def _run(work_units: Sequence[WorkUnit], job: UnitJob) -> Iterator[UnitResult | None]:
    """None when the worker is made, then the results."""
    runner = UnitRunner(job)
    yield None
    yield from runner.run(work_units)
