"""Stages that work shard by shard: which units are left, running them, and whether the result is acceptable."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mode_ray.config.captions import LimitsConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.run_directory import MANIFEST, QUARANTINE, UNITS
from mode_ray.stages.execute import UnitWork, cluster_resources, run_units
from mode_ray.stages.journal import RecordJournal, finished_units
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord, count_refused
from mode_ray.stages.packed import PackedMapping
from mode_ray.stages.work_unit import WorkUnit, WorkUnitTable
from mode_ray.storage import Location

_NAMED_AT_MOST = 5
_REMOVERS = 16
_UNITS_AT_ONCE = 32_768
_SizeAndTime = tuple[int, float]


@dataclass(frozen=True)
class UnitPlan:
    """What a stage's invocation has to do.

    Attributes:
        finished: Records of the units whose outputs stand, by unit.
        left: The shards that have no output, or had their source replaced since.
        replaced: Units with an output of a source that was replaced: they are done again.
        vanished: Units with an output that no shard of the listing has any more: a replaced file is split otherwise.
    """

    finished: Mapping[str, UnitRecord]
    left: Sequence[WorkUnit]
    replaced: Sequence[str]
    vanished: Sequence[str]


def plan_units(stage: Stage, work_units: Sequence[WorkUnit]) -> UnitPlan:
    """Compare what earlier invocations left with the listing of now.

    The stage keeps the plan until its units are processed, so that the outputs are listed once.
    """
    if stage.planned is None or stage.planned[0] is not work_units:
        stage.planned = (work_units, _plan_units(stage, work_units))
    return stage.planned[1]


def _plan_units(stage: Stage, work_units: Sequence[WorkUnit]) -> UnitPlan:
    finished = finished_units(stage.directory)
    if not finished:
        return UnitPlan(finished=finished, left=work_units, replaced=[], vanished=[])
    work_units = WorkUnitTable.of(work_units)
    replaced, unlisted, to_do = list[str](), set(finished), list[int]()
    for place, work_unit in enumerate(work_units):
        record = finished.get(work_unit.unit)
        unlisted.discard(work_unit.unit)
        if record is not None and _is_replaced(record, work_unit):
            replaced.append(work_unit.unit)
            record = None
        if record is None:
            to_do.append(place)
    for unit in (*replaced, *unlisted):
        del finished[unit]
    return UnitPlan(finished=finished, left=work_units.chosen(to_do), replaced=replaced, vanished=sorted(unlisted))


def refuse_replaced_sources(stage: Stage, work_units: Sequence[WorkUnit]) -> None:
    """Refuse to go on from a stage that is done where one of its sources is another file now.

    Raises:
        UsageError: Names the first such file, in order of the units, and the fix.
    """
    units, listed = stage.directory / UNITS, WorkUnitTable.of(work_units).table
    replaced = units.complete(lambda: _first_replaced(units, listed))
    pa.default_memory_pool().release_unused()  # arrow's allocator would keep what the list took
    if replaced is not None:
        source, then, now = replaced
        raise UsageError(
            f"{source}: changed since the {stage.name} stage read it (it had {then[0]} bytes, written at "
            f"{_time(then[1])}; now {now[0]} bytes, written at {_time(now[1])}). "
            f"Restore it, or choose another run directory, or delete {stage.directory / MANIFEST} and the "
            "directories of the later stages and run again: only what changed is done again"
        )


def _first_replaced(units: Location, listed: pa.Table) -> tuple[str, _SizeAndTime, _SizeAndTime] | None:
    """The first source in a stage's list of units that is another file now, with its size and time then and now."""
    columns = ["source", "source_bytes", "source_modified_unix_seconds"]
    with units.open_input() as file:
        # Some at a time, of both: a table of all units, and an index of all files, would be the most a driver holds.
        for batch in pq.ParquetFile(file, page_checksum_verification=True).iter_batches(
            _UNITS_AT_ONCE, columns=columns
        ):
            for start in range(0, len(listed), _UNITS_AT_ONCE):
                part = listed.slice(start, _UNITS_AT_ONCE)
                # All units of a file tell the same size and time: any of them will do.
                places = pc.index_in(batch["source"], part["uri"])
                known = places.is_valid()
                sizes, times = (
                    part[name].take(places.filter(known)) for name in ("size_bytes", "modified_unix_seconds")
                )
                for source, *then, size, modified in zip(
                    *(column.to_pylist() for column in [*batch.filter(known).columns, sizes, times]), strict=True
                ):
                    if _differ((then[0], then[1]), (size, modified)):
                        return source, (then[0], then[1]), (size, modified)
    return None


def _is_replaced(record: UnitRecord, work_unit: WorkUnit) -> bool:
    """Whether a source is another file than the one that a unit was made of."""
    then = (record.source_bytes, record.source_modified_unix_seconds)
    return _differ(then, (work_unit.size_bytes, work_unit.modified_unix_seconds))


def _differ(then: _SizeAndTime, now: _SizeAndTime) -> bool:
    """Whether a size and a time are those of another file.

    Any other time counts, not only a later one: clocks differ, and copies may keep an old time. Some copies keep only
    its whole seconds, such as those of tar.
    """
    if then[1] == 0.0 or now[1] == 0.0:
        return bool(then[0] and then[0] != now[0])
    if then[1].is_integer() or now[1].is_integer():
        return (then[0], int(then[1])) != (now[0], int(now[1]))
    return then != now


def _time(unix_seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_seconds))


def run_work_unit_stage(
    stage: Stage,
    work_units: Sequence[WorkUnit],
    work: UnitWork,
    limits: LimitsConfig,
    on_record: Callable[[UnitRecord], None],
) -> Manifest:
    """Process the work units that have no output yet, and finish the stage.

    Outputs whose source was replaced, and those of units that are no longer listed, are removed and counted.

    Args:
        stage: The stage.
        work_units: All of its units.
        work: What to do with a unit.
        limits: How much may be left out.
        on_record: Called with every new record.

    Raises:
        DataError: As `finish_units`.
    """
    plan = plan_units(stage, work_units)
    stage.planned = None  # its outputs change from here
    stage.begin(len(work_units))
    began = time.monotonic()
    with ThreadPoolExecutor(_REMOVERS) as removers:
        list(removers.map(lambda unit: stage.output(unit).delete(), [*plan.replaced, *plan.vanished]))
    with RecordJournal(stage.directory, stage.attempt) as journal:

        def take(record: UnitRecord) -> None:
            journal.add(record)
            on_record(record)

        made = run_units(plan.left, work, stage.directory, stage.attempt, take)
    summary: dict[str, Any] = {
        "units_made": len(made),
        "units_with_replaced_source": len(plan.replaced),
        "units_vanished": len(plan.vanished),
        "seconds_in_units": round(time.monotonic() - began, 3),
    }
    if made:
        summary["cluster"] = cluster_resources()
    made.update(plan.finished)
    return finish_units(stage, made, limits, summary, work.rows)


def finish_units(
    stage: Stage,
    records: PackedMapping[UnitRecord],
    limits: LimitsConfig,
    summary: Mapping[str, Any],
    rows: str = "captions",
) -> Manifest:
    """Write the manifest, unless too much was left out.

    Raises:
        DataError: More unreadable shards or refused rows than `limits` allows, or no row at all. The outputs stay, so
            that only what failed is done again once the cause is fixed.
    """
    quarantined = [record for record in records.values() if record.error is not None]
    listing = {record.source: record.error for record in quarantined}
    if quarantined:
        (stage.directory / QUARANTINE).write_text(json.dumps(listing, indent=1))
    else:
        (stage.directory / QUARANTINE).delete()  # of an earlier attempt
    if len(quarantined) > limits.max_quarantined_units:
        shown = "\n".join(f"  {record.error}" for record in quarantined[:_NAMED_AT_MOST])
        raise DataError(
            f"{stage.name}: {len(quarantined)} of {len(records)} shards could not be read "
            f"(list: {stage.directory / QUARANTINE}):\n{shown}\n"
            f"Fix them and run again (only they are processed again), or set limits.max_quarantined_units="
            f"{len(quarantined)} to continue without them"
        )
    rows_in = sum(record.rows_in for record in records.values())
    if rows_in == 0:
        sources = sorted({record.source for record in records.values()})
        raise DataError(f"{stage.name}: the input holds no {rows}: {', '.join(sources[:_NAMED_AT_MOST])}")
    refused = count_refused(records.values())
    if sum(refused.values()) > limits.max_refused_share * rows_in:
        raise DataError(
            f"{stage.name}: {sum(refused.values())} of {rows_in} {rows} were refused, more than "
            f"limits.max_refused_share={limits.max_refused_share} allows: {describe_refused(records.values())}"
        )
    return stage.finish(records, summary)


def describe_refused(records: Collection[UnitRecord]) -> str:
    """Refused captions by reason, with the place of the first one of each."""
    parts = []
    for reason, count in count_refused(records).items():
        first = next(record for record in records if reason in record.refused)
        parts.append(f"{count} {reason} (first: {first.source}, {first.examples[reason]})")
    return "; ".join(parts)
