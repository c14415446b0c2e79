"""The command that estimates what a run will take."""

import sys
from typing import Annotated

import typer

from mode_ray.cli.shared import Config, Overrides, console, flag, load
from mode_ray.errors import UsageError


def plan(
    config: Config,
    overrides: Overrides,
    from_run: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Directory of a small run, for the rates.")
    ] = None,
    rows: Annotated[float | None, typer.Option(help="Captions in all (default: those of captions.paths).")] = None,
    rows_per_unit: Annotated[float | None, typer.Option(help="Captions of a shard (default: as found).")] = None,
    machines: Annotated[int, typer.Option(help="Machines (default: those of RUN).", show_default=False)] = 0,
    cores: Annotated[int, typer.Option(help="Cores of each machine.", show_default=False)] = 0,
    gpus: Annotated[float, typer.Option(help="GPUs of all machines together.", show_default=False)] = 0.0,
    efficiency: Annotated[float, typer.Option(help="Share of the measured speed.")] = 0.85,
    cpu_hour_cost: Annotated[float, typer.Option(help="Price of one core for an hour.", show_default=False)] = 0.0,
    gpu_hour_cost: Annotated[float, typer.Option(help="Price of one GPU for an hour.", show_default=False)] = 0.0,
    storage_month_cost: Annotated[float, typer.Option(help="Price of a GB for a month.", show_default=False)] = 0.0,
    train_samples_per_second: Annotated[float | None, typer.Option(help="Speed of one training worker.")] = None,
    as_json: Annotated[bool, flag("--json", "Print JSON.")] = False,
    # Options of version 0.1.0, accepted for one release to name the replacement.
    calibrate: Annotated[bool, typer.Option("--calibrate", hidden=True)] = False,
    rates: Annotated[str | None, typer.Option("--rates", hidden=True)] = None,
    step_seconds: Annotated[str | None, typer.Option("--step-seconds", hidden=True)] = None,
) -> None:
    """Estimate hours, bytes and cost of a run before it is run."""
    if calibrate or rates or step_seconds:
        raise UsageError(
            "plan: --calibrate and --rates were removed: make a small run with your config, for example "
            "`mode-ray run --config my.yaml run=SMALL captions.paths=[A_FEW_FILES]`, and type `mode-ray plan --config "
            "my.yaml --from SMALL`"
        )
    if from_run is None:
        raise UsageError("plan: name a finished or partly finished run to take the rates from: --from RUN")
    settings = load(config, overrides)
    from mode_ray.plan.estimate import PlanOptions, make_plan
    from mode_ray.plan.from_run import rates_from_run
    from mode_ray.plan.inventory import take_inventory
    from mode_ray.plan.machines import ClusterShape, Prices
    from mode_ray.plan.report import plan_json, plan_tables, rates_table
    from mode_ray.storage import Location

    measured = rates_from_run(Location.parse(from_run))
    shape = None
    if machines or gpus:
        shape = ClusterShape(machines=machines, cores=cores, gpus=gpus, capped=False)
    options = PlanOptions(
        shape=shape,
        prices=Prices(cpu_hour=cpu_hour_cost, gpu_hour=gpu_hour_cost, storage_month=storage_month_cost),
        efficiency=efficiency,
        train_samples_per_second=train_samples_per_second,
    )
    made = make_plan(settings, measured, take_inventory(settings, rows, rows_per_unit), options)
    if as_json:
        sys.stdout.write(plan_json(made) + "\n")
    else:
        console().print(rates_table(measured), plan_tables(made), highlight=False)
