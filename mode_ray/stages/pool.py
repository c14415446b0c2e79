"""Works on many units with a pool of Ray actors: the adapter to Ray Data.

The object store holds the table of work units, once, and small records. Actors read and write files themselves, in
threads beside the computation.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.context import AutoscalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.quiet import quiet_ray_data
from mode_ray.stages.unit_job import UnitJob, UnitResult, UnitRunner, death_at_start
from mode_ray.stages.work_unit import WorkUnit, WorkUnitTable

# Losing a starting actor with its node ends a Ray Data execution at once by default.
_LOST_STARTS = 8
_GROW_ABOVE_TASKS = 0.75  # an actor


def run_in_pool(work_units: Sequence[WorkUnit], job: UnitJob, units_per_task: int) -> Iterator[UnitRecord]:
    """The records of the units, in order of arrival; none for units whose tasks were lost too often.

    Ray's dashboard shows the data set by the job's name, and its actors by the name of the worker's class.

    Raises:
        WorkerError: The workers die while they start.
        ModeRayError: The worker raised it.
        RuntimeError: A defect, with its traceback and the source file.
    """
    pool, tasks = job.pool, -(-len(work_units) // units_per_task)
    quiet_ray_data()
    table = ray.put(WorkUnitTable.of(work_units))
    strategy = ray.data.ActorPoolStrategy(
        min_size=min(pool.min_actors, tasks),
        max_size=min(pool.max_actors, tasks),
        # Tasks that wait in the queue of an actor that is lost count as tried: a unit tried alone must not wait there.
        max_tasks_in_flight_per_actor=1 if units_per_task == 1 else None,
    )
    starts = ray.remote(num_cpus=0)(_Starts).options(scheduling_strategy=_on_this_node()).remote()
    places = ray.data.from_items(list(range(len(work_units))), override_num_blocks=tasks)
    results = places.map_batches(
        type(getattr(job.worker, "__name__", "UnitWorker"), (_PoolActor,), {}),
        batch_size=None,
        batch_format="pyarrow",
        compute=strategy,
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        label_selector=pool.required_labels,
        fn_constructor_args=(_Shared(table, starts), job),
    )
    results.set_name(job.name)
    # Ray Data requests machines from the autoscaler itself. Without this, it would request them from every pool.
    results.context.execution_options.label_selector = pool.required_labels
    # This concerns lost tasks only: errors inside an actor come back as rows.
    results.context.max_errored_blocks = -1
    results.context.max_consecutive_actor_init_deaths = _LOST_STARTS
    # By default a pool grows when 1.75 tasks wait for each actor: never, where an actor is given one task at a time.
    results.context.autoscaling_config = AutoscalingConfig(actor_pool_util_upscaling_threshold=_GROW_ABOVE_TASKS)
    try:
        for row in results.iter_rows():
            yield UnitResult(**row).of_driver()
    except ray.exceptions.RayActorError as error:
        raise death_at_start(error) from error


def _on_this_node() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class _Starts:
    """Counts how often each task was begun: an actor on the driver's node, which outlives those of the pool."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, task: int) -> int:
        """Count a start of a task, named by its first place, and return the number of its starts."""
        self._counts[task] += 1
        return self._counts[task]


@dataclass(frozen=True)
class _Shared:
    """What all actors of a pool use.

    Attributes:
        table: The work units.
        starts: Handle of the `_Starts`.
    """

    table: "ray.ObjectRef[WorkUnitTable]"
    starts: Any


class _PoolActor:
    """A `UnitRunner` for Ray Data: places in the table of units in, results out.

    Ray repeats lost tasks without a limit; a task that was begun too often returns no rows.
    """

    def __init__(self, shared: "_Shared", job: UnitJob) -> None:
        self._work_units: WorkUnitTable = ray.get(shared.table)
        self._starts = shared.starts
        self._most_starts = job.pool.retries_per_unit + 1
        self._runner = UnitRunner(job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Process the units at places (column `item`) of the table; returns rows of either `record` or `failure`."""
        items = batch["item"].to_pylist()
        results: list[UnitResult] = []
        if ray.get(self._starts.begin.remote(items[0])) <= self._most_starts:
            results += self._runner.run([self._work_units[place] for place in items])
        columns = {name: [getattr(result, name) for result in results] for name in ("record", "failure")}
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
