"""Which units are handed out together, which are tried alone, and which are given up: decided without Ray."""

from mode_ray.config.base import ActorPool
from mode_ray.stages.ledger import UnitLedger
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.work_unit import WorkUnit

POOL = ActorPool(max_actors=2, retries_per_unit=1)


def work_units(count: int) -> list[WorkUnit]:
    return [WorkUnit(unit=f"u{number}", uri=f"/in/u{number}.tar", format="webdataset") for number in range(count)]


def record(unit: str) -> UnitRecord:
    return UnitRecord(unit=unit, source=f"/in/{unit}.tar", rows_in=1, rows_out=1)


def test_tasks_are_small_enough_for_balance_and_for_progress() -> None:
    sizes = {count: UnitLedger(work_units(count), POOL, "a", print).units_per_task for count in (1, 8, 40, 64, 1000)}
    assert sizes == {1: 1, 8: 1, 40: 5, 64: 8, 1000: 8}


def test_records_are_told_and_kept_in_the_order_in_which_they_come() -> None:
    told: list[UnitRecord] = []
    ledger = UnitLedger(work_units(3), POOL, "a", told.append)
    for unit in ("u2", "u0", "u1"):
        ledger.take(record(unit))
    assert list(ledger.records.values()) == told == [record("u2"), record("u0"), record("u1")]
    assert ledger.lost() == []


def test_units_without_a_record_are_lost_and_given_up_when_that_stays() -> None:
    told: list[UnitRecord] = []
    ledger = UnitLedger(work_units(4), POOL, "attempt", told.append)
    ledger.take(record("u1"))
    assert [work_unit.unit for work_unit in ledger.lost()] == ["u0", "u2", "u3"]
    ledger.take(record("u3"))
    ledger.give_up()
    assert ledger.lost() == []
    reason = "its worker process died 2 times while processing only this unit (out of memory?)"
    assert {unit: one.error for unit, one in ledger.records.items() if one.error} == {
        "u0": f"/in/u0.tar: {reason}",
        "u2": f"/in/u2.tar: {reason}",
    }
    assert told[-1].attempt == "attempt"
