"""A plan and a calibration for people (rich tables) and for programs (JSON)."""

import json
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.text import Text

from mode_ray.plan.estimate import Plan
from mode_ray.plan.rates import Rates
from mode_ray.tables import WideTable

_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_SECONDS_PER_HOUR = 3600.0


def plan_json(plan: Plan) -> str:
    """The whole plan as JSON; hours, bytes and cost unrounded."""
    return json.dumps(asdict(plan), indent=1)


def plan_tables(plan: Plan) -> RenderableType:
    """The plan as a table with its assumptions below."""
    title = f"{plan.inventory.rows:,.0f} captions in {plan.inventory.units:,} work units"
    table = WideTable(title, "stage", "actors", "core-hours", "GPU-hours", "wall", "reads", "writes", "cost")
    for stage in plan.stages:
        table.add_row(
            stage.stage,
            f"{stage.actors:,}",
            _hours(stage.core_hours),
            _hours(stage.gpu_hours) if stage.gpu_hours else "",
            duration(stage.wall_hours),
            size(stage.read_bytes),
            size(stage.written_bytes),
            f"{stage.cost:,.2f}" if stage.cost else "",
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        _hours(sum(stage.core_hours for stage in plan.stages)),
        _hours(gpu_hours) if (gpu_hours := sum(stage.gpu_hours for stage in plan.stages)) else "",
        duration(sum(stage.wall_hours for stage in plan.stages)),
        size(sum(stage.read_bytes for stage in plan.stages)),
        size(plan.stored_bytes),
        f"{cost:,.2f}" if (cost := sum(stage.cost for stage in plan.stages)) else "",
    )
    kept = f", {plan.storage_cost_month:,.2f} a month" if plan.storage_cost_month else ""
    lines = [
        f"stored in the run directory: {size(plan.stored_bytes)}{kept}",
        f"memory of the clustering: about {size(plan.clustering_memory_bytes)} in each of its processes",
    ]
    if plan.settings:
        lines.append(f"takes these settings: {' '.join(plan.settings)}")
    lines += ["assumptions:", *(f"- {assumption}" for assumption in plan.assumptions)]
    return Group(table, *map(Text, lines))


def rates_table(rates: Rates) -> WideTable:
    """Measured rates, as rows a second."""
    title = f"rates of {rates.machine.host}, {rates.measured_at}"
    table = WideTable(title, "step", "embed: rows/s an actor", "assign: rows/s an actor")
    for step in ("read_captions", "encode", "write_embeddings", "read_embeddings", "search", "write_assignments"):
        both = (getattr(actor, step).wall_seconds for actor in (rates.embed, rates.assign))
        table.add_row(step.replace("_", " "), *(_per_second(seconds) for seconds in both))
    table.add_section()
    kmeans, fixed = rates.kmeans, rates.fixed
    table.add_row("k-means: rows/s and iteration", _per_second(kmeans.row_iteration_seconds), "")
    table.add_row("fixed seconds", f"{fixed.embed_seconds:.1f}", f"{fixed.assign_seconds:.1f}")
    table.add_row("milliseconds a work unit", f"{fixed.unit_seconds * 1000:.0f}", f"{fixed.unit_seconds * 1000:.0f}")
    return table


def size(count: float) -> str:
    """Bytes in decimal units."""
    power = 0
    while count >= 1000 and power < len(_SIZES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {_SIZES[power]}"


def duration(hours: float) -> str:
    """Hours, or minutes or seconds where they are few."""
    seconds = hours * _SECONDS_PER_HOUR
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{hours:,.1f} h"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _per_second(seconds: float) -> str:
    return f"{1 / seconds:,.0f}" if seconds else ""
