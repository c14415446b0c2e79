"""Which units an invocation hands out together, what came of them, and which are tried alone or given up.

Nothing here knows how tasks are run: `unit_pool` does it with Ray, and the simulated fleet of `benchmarks/fleet.py`
with a clock of its own.
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
        work_units: What is left to do.
        pool: The actors that do it.
        attempt: Name of the stage's invocation.
        on_record: Called with every record as it arrives.

    Attributes:
        records: What came of the units, by unit.
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
        """Units that go in a task at first: about four tasks an actor for balance, few enough that progress shows."""
        return max(1, min(_UNITS_PER_TASK, len(self._work_units) // (_TASKS_PER_ACTOR * self._pool.max_actors)))

    def take(self, record: UnitRecord) -> None:
        """A record arrived."""
        self._on_record(record)
        self.records[record.unit] = record

    def lost(self) -> Sequence[WorkUnit]:
        """Units without a record: their task was lost as often as it may be; each is tried in a task of its own."""
        if len(self.records) == len(self._work_units):
            return []
        return [work_unit for work_unit in self._work_units if work_unit.unit not in self.records]

    def give_up(self) -> None:
        """Quarantine what is lost though it was tried alone."""
        tries = self._pool.retries_per_unit + 1
        reason = f"its worker process died {tries} times while it alone was worked on (out of memory?)"
        for work_unit in self.lost():
            self.take(quarantined(work_unit, f"{work_unit.uri}: {reason}", self._attempt))
