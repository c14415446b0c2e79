"""The command that estimates what a run will take."""

import argparse
import sys
from collections.abc import Callable

from rich.console import Console

from mode_ray.config.load import load_config
from mode_ray.errors import UsageError
from mode_ray.storage import Location


def add_plan_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_overrides: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add the command to the command line's own."""
    plan = commands.add_parser("plan", help="estimate hours, bytes and cost of a run before it is run")
    plan.add_argument("--config", required=True, help="YAML file or URI, or a preset: demo, small, paper")
    plan.add_argument(
        "--from", dest="from_run", metavar="RUN", help="directory of a small run, to take the rates from"
    )
    plan.add_argument("--rows", type=float, help="captions in all (default: those of captions.paths)")
    plan.add_argument("--rows-per-unit", type=float, help="captions of a shard (default: as in captions.paths)")
    plan.add_argument("--machines", type=int, default=0, help="machines to plan for (default: those of RUN)")
    plan.add_argument("--cores", type=int, default=0, help="cores of each of them")
    plan.add_argument("--gpus", type=float, default=0.0, help="GPUs of all machines together")
    plan.add_argument("--efficiency", type=float, default=0.85, help="share of the measured speed (default: 0.85)")
    plan.add_argument("--cpu-hour-cost", type=float, default=0.0, help="price of one core for an hour")
    plan.add_argument("--gpu-hour-cost", type=float, default=0.0, help="price of one GPU for an hour")
    plan.add_argument("--storage-month-cost", type=float, default=0.0, help="price of a GB for a month")
    plan.add_argument("--train-samples-per-second", type=float, help="of one training worker (default: that of RUN)")
    plan.add_argument("--json", action="store_true", help="print JSON")
    # Options of the version before, accepted only to name the replacement.
    plan.add_argument("--calibrate", action="store_true", help=argparse.SUPPRESS)
    plan.add_argument("--rates", help=argparse.SUPPRESS)
    plan.add_argument("--step-seconds", help=argparse.SUPPRESS)
    add_overrides(plan)
    plan.set_defaults(function=_plan)


def _plan(options: argparse.Namespace, console: Console) -> int:
    if options.calibrate or options.rates or options.step_seconds:
        raise UsageError(
            "plan: --calibrate and --rates were removed: make a small run with your config, for example "
            "`mode-ray run --config my.yaml run=SMALL captions.paths=[A_FEW_FILES]`, and type `mode-ray plan --config "
            "my.yaml --from SMALL`"
        )
    if options.from_run is None:
        raise UsageError("plan: name a finished or partly finished run to take the rates from: --from RUN")
    from mode_ray.plan.estimate import PlanOptions, make_plan
    from mode_ray.plan.from_run import rates_from_run
    from mode_ray.plan.inventory import take_inventory
    from mode_ray.plan.machines import ClusterShape, Prices
    from mode_ray.plan.report import plan_json, plan_tables, rates_table

    config = load_config(options.config, options.overrides)
    rates = rates_from_run(Location.parse(options.from_run))
    inventory = take_inventory(config, options.rows, options.rows_per_unit)
    shape = None
    if options.machines or options.gpus:
        shape = ClusterShape(machines=options.machines, cores=options.cores, gpus=options.gpus, capped=False)
    prices = Prices(
        cpu_hour=options.cpu_hour_cost,
        gpu_hour=options.gpu_hour_cost,
        storage_month=options.storage_month_cost,
    )
    asked = PlanOptions(
        shape=shape,
        prices=prices,
        efficiency=options.efficiency,
        train_samples_per_second=options.train_samples_per_second,
    )
    plan = make_plan(config, rates, inventory, asked)
    if options.json:
        sys.stdout.write(plan_json(plan) + "\n")
    else:
        console.print(rates_table(rates), plan_tables(plan), highlight=False)
    return 0
