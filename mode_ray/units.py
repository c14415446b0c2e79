"""The stages that work shard by shard: what is left to do, doing it, and whether the result may stand."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mode_ray.captions.shards import Shard
from mode_ray.config import ActorPool, RunConfig
from mode_ray.errors import DataError
from mode_ray.stage import Manifest, Stage, UnitRecord, count_refused
from mode_ray.unit_pool import UnitWorker, run_units

QUARANTINE = "quarantine.json"
_NAMED_AT_MOST = 5


def units_left(stage: Stage, shards: Sequence[Shard]) -> tuple[dict[str, UnitRecord], list[Shard]]:
    """The records of the units whose outputs stand, and the shards that still have none."""
    names = {shard.unit for shard in shards}
    finished = {unit: record for unit, record in stage.finished_units().items() if unit in names}
    return finished, [shard for shard in shards if shard.unit not in finished]


def run_shard_stage(
    config: RunConfig,
    stage: Stage,
    shards: Sequence[Shard],
    worker: Callable[..., UnitWorker],
    arguments: Sequence[Any],
    pool: ActorPool,
    on_record: Callable[[UnitRecord], None],
) -> Manifest:
    """Process the shards that have no output yet, and finish the stage.

    Args:
        config: The run's config.
        stage: The stage.
        shards: All of its units.
        worker: Makes the worker, in each actor.
        arguments: Its arguments.
        pool: Size and resources of the pool.
        on_record: Called with every new record.

    Raises:
        DataError: As `finish_units`.
    """
    finished, left = units_left(stage, shards)
    stage.begin(len(shards))
    began = time.monotonic()
    made = run_units(left, worker, arguments, stage.directory, stage.attempt, pool, on_record)
    summary = {"units_made": len(made), "seconds_in_units": round(time.monotonic() - began, 3)}
    return finish_units(stage, [*finished.values(), *made], config, summary)


def finish_units(
    stage: Stage, records: Sequence[UnitRecord], config: RunConfig, summary: Mapping[str, Any]
) -> Manifest:
    """Write the manifest, unless too much was left out.

    Raises:
        DataError: More unreadable shards or refused captions than the config allows, or no caption at all. The outputs
            stay, so that after the mend only what failed is done again.
    """
    quarantined = [record for record in records if record.error is not None]
    listing = {record.source: record.error for record in quarantined}
    if quarantined:
        (stage.directory / QUARANTINE).write_text(json.dumps(listing, indent=1))
    else:
        (stage.directory / QUARANTINE).delete()  # of an earlier attempt
    if len(quarantined) > config.limits.max_quarantined_units:
        shown = "\n".join(f"  {record.error}" for record in quarantined[:_NAMED_AT_MOST])
        raise DataError(
            f"{stage.name}: {len(quarantined)} of {len(records)} shards could not be read "
            f"(list: {stage.directory / QUARANTINE}):\n{shown}\n"
            f"Mend them and run again (only they are done again), or set limits.max_quarantined_units="
            f"{len(quarantined)} to go on without them"
        )
    rows_in = sum(record.rows_in for record in records)
    if rows_in == 0:
        raise DataError(f"{stage.name}: the input holds no caption: {', '.join(config.captions.paths)}")
    refused = count_refused(records)
    if sum(refused.values()) > config.limits.max_refused_share * rows_in:
        raise DataError(
            f"{stage.name}: {sum(refused.values())} of {rows_in} captions were refused, more than "
            f"limits.max_refused_share={config.limits.max_refused_share} allows: {describe_refused(records)}"
        )
    return stage.finish(records, summary)


def describe_refused(records: Sequence[UnitRecord]) -> str:
    """Refused captions by reason, with the place of the first one of each."""
    parts = []
    for reason, count in count_refused(records).items():
        first = next(record for record in records if reason in record.refused)
        parts.append(f"{count} {reason} (first: {first.source}, {first.examples[reason]})")
    return "; ".join(parts)
