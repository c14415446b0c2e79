"""Which units of an invocation share a task, which have a record, and which are tried alone or given up.

It does not run tasks: `mode_ray.stages.execute` does, with Ray, and so does the simulation of `benchmarks/fleet.py`.
"""

from collections.abc import Callable, Sequence

from mode_ray.config.base import ActorPool
from mode_ray.stages.actor import quarantined
from mode_ray.stages.manifest import UnitRecord, record_book
from mode_ray.stages.packed import PackedMapping
from mode_ray.stages.work_unit import WorkUnit

_UNITS_PER_TASK = 8
_TASKS_PER_ACTOR = 4


class UnitLedger:
    """The units of one invocation.

    Args:
        work_units: The units to process.
        pool: The actors.
        attempt: Name of the stage's invocation.
        on_record: Called with every record as it arrives.

    Attributes:
        records: The records so far, by unit.
    """

    def __init__(
        self, work_units: Sequence[WorkUnit], pool: ActorPool, attempt: str, on_record: Callable[[UnitRecord], None]
    ) -> None:
        self._work_units = work_units
        self._pool = pool
        self._attempt = attempt
        self._on_record = on_record
        self.records: PackedMapping[UnitRecord] = record_book()

    @property
    def units_per_task(self) -> int:
        """Units of a task at first: at least four tasks for each actor, for balance; at most 8 units, for progress."""
        return max(1, min(_UNITS_PER_TASK, len(self._work_units) // (_TASKS_PER_ACTOR * self._pool.max_actors)))

    def take(self, record: UnitRecord) -> None:
        """Store a new record."""
        self._on_record(record)
        self.records[record.unit] = record

    def lost(self) -> Sequence[WorkUnit]:
        """Units without a record, because their task was lost too often; each is tried in a task of its own."""
        if len(self.records) == len(self._work_units):
            return []
        return [work_unit for work_unit in self._work_units if work_unit.unit not in self.records]

    def give_up(self) -> None:
        """Quarantine the units that were lost even in a task of their own."""
        tries = self._pool.retries_per_unit + 1
        reason = f"its worker process died {tries} times while processing only this unit (out of memory?)"
        for work_unit in self.lost():
            self.take(quarantined(work_unit, f"{work_unit.uri}: {reason}", self._attempt))
