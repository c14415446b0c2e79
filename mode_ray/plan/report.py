"""A plan and its rates as rich tables of at most 80 columns, and as JSON."""

import json
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.markup import escape

from mode_ray.plan.estimate import Plan
from mode_ray.plan.machines import SECONDS_PER_HOUR
from mode_ray.plan.rates import Rates
from mode_ray.util.tables import WideTable, duration

_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


def plan_json(plan: Plan) -> str:
    """The plan as JSON, with unrounded hours, bytes and cost."""
    return json.dumps(asdict(plan), indent=1)


def plan_tables(plan: Plan) -> RenderableType:
    """The plan as a table, with its assumptions below."""
    headings = ("stage", "actors", "core-hours", "GPU-hours", "wall", "reads", "writes", "cost")
    title = f"{plan.inventory.rows:,.0f} captions in {plan.inventory.units:,} work units"
    table = WideTable(title, *headings)
    for stage in plan.stages:
        table.add_row(
            stage.stage,
            f"{stage.actors:,}",
            _hours(stage.core_hours),
            _hours(stage.gpu_hours) if stage.gpu_hours else "",
            duration(SECONDS_PER_HOUR * stage.wall_hours),
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
        duration(SECONDS_PER_HOUR * sum(stage.wall_hours for stage in plan.stages)),
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
        lines.append(f"needs these settings: {' '.join(plan.settings)}")
    lines += ["assumptions:", *(f"- {assumption}" for assumption in plan.assumptions)]
    return Group(table, *(escape(line) for line in lines))


def rates_table(rates: Rates) -> WideTable:
    """The rates of a run per actor, process or worker."""
    table = WideTable(f"rates of {rates.run}", "stage", "rows", "rate", "fixed")
    for name, shard in (("embed", rates.embed), ("assign", rates.assign), ("features", rates.features)):
        if shard:
            rate = f"{_per_second(shard.row_seconds)} rows/s an actor"
            table.add_row(name, f"{shard.rows:,}", rate, f"{shard.fixed_seconds:.1f} s")
            reading = f"{_per_second(shard.read_row_seconds)} rows/s an actor"
            table.add_row(f"{name}: reading", "", reading if shard.read_row_seconds else "", "")
    if (cluster := rates.cluster) is not None:
        rate = f"{_per_second(cluster.row_iteration_seconds)} rows/s an iteration"
        fixed_seconds = cluster.fixed_seconds + cluster.coarse_seconds
        table.add_row("cluster", f"{cluster.rows:,}", rate, f"{fixed_seconds:.1f} s")
    if (train := rates.train) is not None:
        rate = f"{train.samples_per_second:,.1f} samples/s a worker"
        table.add_row("train", f"{train.samples:,}", rate, f"{train.launch_seconds:.1f} s a run")
    if (evaluate := rates.evaluate) is not None:
        rate = f"{evaluate.images * evaluate.models / max(evaluate.seconds, 1e-3):,.1f} images x models/s"
        table.add_row("evaluate", f"{evaluate.images:,}", rate, "")
    return table


def size(count: float) -> str:
    """Bytes in decimal units."""
    power = 0
    while count >= 1000 and power < len(_SIZES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {_SIZES[power]}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _per_second(seconds: float) -> str:
    return f"{1 / seconds:,.0f}" if seconds else ""
