"""Processes work units on a pool of Ray actors: the adapter between the stages and Ray Data.

The object store holds the table of work units, once, and small records. Actors read and write files themselves, in
threads beside the computation.
"""

import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.context import AutoscalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mode_ray.config.base import ActorPool
from mode_ray.errors import ModeRayError, WorkerError
from mode_ray.stages.actor import UnitActor, UnitWorker
from mode_ray.stages.dashboard_names import shown_name
from mode_ray.stages.ledger import UnitLedger
from mode_ray.stages.manifest import UnitRecord, record_book
from mode_ray.stages.packed import PackedMapping
from mode_ray.stages.work_unit import WorkUnit, WorkUnitTable
from mode_ray.storage import Location

# Losing a starting actor with its node ends a Ray Data execution at once by default.
_LOST_STARTS = 8
_REASON_CHARACTERS = 300
_GROW_ABOVE_TASKS = 0.75  # an actor


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
    """Process work units on an actor pool; an output is on storage when its record arrives.

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
    pool = work.pool
    actor = (work.worker, tuple(work.arguments), directory.uri, attempt, pool.retries_per_unit)
    ledger = UnitLedger(work_units, pool, attempt, on_record)
    name = shown_name(directory, parts=2)
    for record in _run_tasks(work_units, actor, pool, ledger.units_per_task, name):
        ledger.take(record)
    if lost := ledger.lost():
        for record in _run_tasks(lost, actor, pool, 1, name):
            ledger.take(record)
    ledger.give_up()
    return ledger.records


def cluster_resources() -> dict[str, float]:
    """CPUs and GPUs of the Ray cluster, as it is now."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {name: float(resources.get(name, 0.0)) for name in ("CPU", "GPU")}


def _run_tasks(
    work_units: Sequence[WorkUnit], actor: tuple[Any, ...], pool: ActorPool, units_per_task: int, name: str
) -> Iterator[UnitRecord]:
    """The records of the units, in order of arrival; none for units whose tasks were lost too often.

    Ray's dashboard shows the data set by `name`, and its actors by the name of the worker's class.
    """
    tasks = -(-len(work_units) // units_per_task)
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
        type(getattr(actor[0], "__name__", "UnitWorker"), (_PoolActor,), {}),
        batch_size=None,
        batch_format="pyarrow",
        compute=strategy,
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        label_selector=dict(pool.label_selector) or None,
        fn_constructor_args=(_Shared(table, starts), *actor),
    )
    results.set_name(name)
    # This concerns lost tasks only: errors inside an actor come back as rows.
    results.context.max_errored_blocks = -1
    results.context.max_consecutive_actor_init_deaths = _LOST_STARTS
    # By default a pool grows when 1.75 tasks wait for each actor: never, where an actor is given one task at a time.
    results.context.autoscaling_config = AutoscalingConfig(actor_pool_util_upscaling_threshold=_GROW_ABOVE_TASKS)
    try:
        for row in results.iter_rows():
            if row["failure"] is not None:
                raise _failure_from_json(row["failure"])
            yield UnitRecord.from_json(row["record"])
    except ray.exceptions.RayActorError as error:
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        raise WorkerError(
            f"worker processes die while they start ({reason}): give each more memory, or run fewer on a machine"
        ) from error


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
    """A `UnitActor` for Ray Data: places in the table of units in, records and failures as JSON out.

    Failures are rows, not exceptions, because Ray Data treats exceptions like lost tasks. Ray repeats lost tasks
    without a limit; a task that was begun too often returns no rows.
    """

    def __init__(
        self,
        shared: "_Shared",
        worker: Callable[..., UnitWorker],
        arguments: Sequence[Any],
        directory: str,
        attempt: str,
        retries: int,
    ) -> None:
        self._work_units: WorkUnitTable = ray.get(shared.table)
        self._starts = shared.starts
        self._most_starts = retries + 1
        self._actor: UnitActor | None = None
        self._failure = ""
        try:
            self._actor = UnitActor(worker(*arguments), Location(directory), attempt, retries)
        except Exception as error:  # noqa: BLE001 - the driver raises it
            self._failure = _failure_to_json(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Process the units at places (column `item`) of the table; returns rows of either `record` or `failure`."""
        records: list[str | None] = []
        failures: list[str | None] = []
        items = batch["item"].to_pylist()
        if self._actor is None:
            failures.append(self._failure)
        elif ray.get(self._starts.begin.remote(items[0])) <= self._most_starts:
            try:
                work_units = [self._work_units[place] for place in items]
                records += (record.to_json() for record in self._actor.process(work_units))
            except Exception as error:  # noqa: BLE001 - the driver raises it
                failures.append(_failure_to_json(error))
        rows = len(records) + len(failures)
        return pa.table(
            {
                "record": pa.array(records + [None] * (rows - len(records)), pa.string()),
                "failure": pa.array([None] * len(records) + failures, pa.string()),
            }
        )


def _failure_to_json(error: Exception) -> str:
    if isinstance(error, ModeRayError):
        message = " ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", ()))])
        return json.dumps({"kind": type(error).__name__, "message": message})
    return json.dumps({"kind": "", "message": "".join(traceback.format_exception(error))})


def _failure_from_json(text: str) -> Exception:
    failure = json.loads(text)
    kinds = {kind.__name__: kind for kind in ModeRayError.__subclasses__()}
    if failure["kind"] in kinds:
        return kinds[failure["kind"]](failure["message"])
    return RuntimeError(f"in a worker:\n{failure['message']}")
