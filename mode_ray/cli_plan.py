"""The command that estimates what a run will take."""

import argparse
import sys
from collections.abc import Callable

from rich.console import Console

from mode_ray.config.load import load_config
from mode_ray.storage import Location


def add_plan_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_overrides: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add the command to the command line's own."""
    plan = commands.add_parser("plan", help="estimate hours, bytes and cost of a run before it is run")
    plan.add_argument("--config", required=True, help="YAML file or URI, or a preset: demo, small, paper")
    plan.add_argument("--calibrate", action="store_true", help="measure rates on this machine first, and write them")
    plan.add_argument("--step-seconds", type=float, default=5.0, help="least time of each measured step (default: 5)")
    plan.add_argument("--rates", default="mode-ray-rates.json", help="the rates file (default: mode-ray-rates.json)")
    plan.add_argument("--rows", type=float, help="captions in all (default: those of captions.paths)")
    plan.add_argument("--rows-per-unit", type=float, help="captions of a shard (default: as in captions.paths)")
    plan.add_argument("--machines", type=int, default=0, help="machines to plan for (default: the one measured)")
    plan.add_argument("--cores", type=int, default=0, help="cores of each of them")
    plan.add_argument("--gpus", type=float, default=0.0, help="GPUs of all machines together")
    plan.add_argument("--efficiency", type=float, default=0.85, help="share of the measured speed (default: 0.85)")
    plan.add_argument("--cpu-hour-cost", type=float, default=0.0, help="price of one core for an hour")
    plan.add_argument("--gpu-hour-cost", type=float, default=0.0, help="price of one GPU for an hour")
    plan.add_argument("--storage-month-cost", type=float, default=0.0, help="price of a GB for a month")
    plan.add_argument("--train-samples-per-second", type=float, help="speed of one training worker")
    plan.add_argument("--json", action="store_true", help="print JSON")
    add_overrides(plan)
    plan.set_defaults(function=_plan)


def _plan(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.plan.estimate import make_plan
    from mode_ray.plan.inventory import take_inventory
    from mode_ray.plan.rates import read_rates, require_fit, write_rates
    from mode_ray.plan.report import plan_json, plan_tables, rates_table
    from mode_ray.plan.stages import ClusterShape, Prices

    config, file = load_config(options.config, options.overrides), Location.parse(options.rates)
    if options.calibrate:
        from mode_ray.observe.progress import Progress
        from mode_ray.plan.calibrate import calibrate

        rates = calibrate(config, Progress(Console(stderr=True)).say, options.step_seconds)
        write_rates(file, rates)
        if not options.json:
            console.print(rates_table(rates))
            console.print(f"rates: {file}", soft_wrap=True, highlight=False)
        if options.rows is None:
            return 0
    rates = read_rates(file)
    require_fit(rates, config, str(file))
    inventory = take_inventory(config, options.rows, options.rows_per_unit)
    shape = None
    if options.machines or options.gpus:
        shape = ClusterShape(machines=options.machines, cores=options.cores, gpus=options.gpus, capped=False)
    prices = Prices(
        cpu_hour=options.cpu_hour_cost,
        gpu_hour=options.gpu_hour_cost,
        storage_month=options.storage_month_cost,
    )
    plan = make_plan(config, rates, inventory, shape, prices, options.efficiency, options.train_samples_per_second)
    if options.json:
        sys.stdout.write(plan_json(plan) + "\n")
    else:
        console.print(plan_tables(plan), highlight=False)
    return 0
