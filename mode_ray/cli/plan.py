"""The command that estimates what a run will take."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from mode_ray.cli.shared import Config, Overrides, console, flag, load, say


def plan(
    config: Config,
    overrides: Overrides,
    calibrate: Annotated[bool, flag("--calibrate", "First measure rates here, and write them.")] = False,
    step_seconds: Annotated[float, typer.Option(help="Least time of each measured step.")] = 5.0,
    rates: Annotated[str, typer.Option(metavar="FILE", help="The rates file.")] = "mode-ray-rates.json",
    rows: Annotated[float | None, typer.Option(help="Captions in all (default: those of captions.paths).")] = None,
    rows_per_unit: Annotated[float | None, typer.Option(help="Captions of a shard (default: as found).")] = None,
    machines: Annotated[int, typer.Option(help="Machines (default: the one measured).", show_default=False)] = 0,
    cores: Annotated[int, typer.Option(help="Cores of each machine.", show_default=False)] = 0,
    gpus: Annotated[float, typer.Option(help="GPUs of all machines together.", show_default=False)] = 0.0,
    efficiency: Annotated[float, typer.Option(help="Share of the measured speed.")] = 0.85,
    cpu_hour_cost: Annotated[float, typer.Option(help="Price of one core for an hour.", show_default=False)] = 0.0,
    gpu_hour_cost: Annotated[float, typer.Option(help="Price of one GPU for an hour.", show_default=False)] = 0.0,
    storage_month_cost: Annotated[float, typer.Option(help="Price of a GB for a month.", show_default=False)] = 0.0,
    train_samples_per_second: Annotated[float | None, typer.Option(help="Speed of one training worker.")] = None,
    as_json: Annotated[bool, flag("--json", "Print JSON.")] = False,
) -> None:
    """Estimate hours, bytes and cost of a run before it is run."""
    settings = load(config, overrides)
    from mode_ray.plan.estimate import make_plan
    from mode_ray.plan.inventory import take_inventory
    from mode_ray.plan.rates import read_rates, require_fit, write_rates
    from mode_ray.plan.report import plan_json, plan_tables, rates_table
    from mode_ray.plan.stages import ClusterShape, Prices
    from mode_ray.storage import Location

    file = Location.parse(rates)
    if calibrate:
        from mode_ray.observe.progress import Progress
        from mode_ray.plan.calibrate import calibrate as measure_rates

        measured = measure_rates(settings, Progress(Console(stderr=True)).say, step_seconds)
        write_rates(file, measured)
        if not as_json:
            console().print(rates_table(measured))
            say(f"rates: {file}")
        if rows is None:
            return
    known = read_rates(file)
    require_fit(known, settings, str(file))
    inventory = take_inventory(settings, rows, rows_per_unit)
    shape = None
    if machines or gpus:
        shape = ClusterShape(machines=machines, cores=cores, gpus=gpus, capped=False)
    prices = Prices(cpu_hour=cpu_hour_cost, gpu_hour=gpu_hour_cost, storage_month=storage_month_cost)
    made = make_plan(settings, known, inventory, shape, prices, efficiency, train_samples_per_second)
    if as_json:
        sys.stdout.write(plan_json(made) + "\n")
    else:
        console().print(plan_tables(made), highlight=False)
