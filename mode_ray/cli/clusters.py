"""The commands for clusters: estimates of a run, launch files, and checks of a cluster."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mode_ray.cli.shared import Config, Overrides, console, flag, load, optional, say
from mode_ray.errors import UsageError

if TYPE_CHECKING:
    from mode_ray.storage import Location


def plan(
    config: Config,
    overrides: Overrides,
    from_run: Annotated[
        str | None, optional("Run directory that the rates are read from.", "--from", metavar="RUN")
    ] = None,
    rows: Annotated[float | None, optional("Number of captions (default: counted in captions.paths).")] = None,
    rows_per_unit: Annotated[float | None, optional("Captions per shard (default: as counted).")] = None,
    machines: Annotated[int, optional("Machines (default: those of RUN).")] = 0,
    cores: Annotated[int, optional("Cores of each machine.")] = 0,
    gpus: Annotated[float, optional("GPUs of all machines together.")] = 0.0,
    efficiency: Annotated[float, typer.Option(help="Share of the measured speed.")] = 0.85,
    cpu_hour_cost: Annotated[float, optional("Price of one core for an hour.")] = 0.0,
    gpu_hour_cost: Annotated[float, optional("Price of one GPU for an hour.")] = 0.0,
    storage_month_cost: Annotated[float, optional("Price of a GB for a month.")] = 0.0,
    train_samples_per_second: Annotated[float | None, optional("Speed of one training worker.")] = None,
    as_json: Annotated[bool, flag("--json", "Print JSON.")] = False,
    # Options of version 0.1.0. For one release they name their replacement.
    calibrate: Annotated[bool, typer.Option("--calibrate", hidden=True)] = False,
    rates: Annotated[str | None, typer.Option("--rates", hidden=True)] = None,
    step_seconds: Annotated[str | None, typer.Option("--step-seconds", hidden=True)] = None,
) -> None:
    """Estimate hours, bytes and cost of a run before you start it."""
    if calibrate or rates or step_seconds:
        raise UsageError(
            "plan: --calibrate and --rates were removed: make a small run with your config (`mode-ray run --config "
            "my.yaml run=SMALL captions.paths=[A_FEW_FILES]`), then `mode-ray plan --config my.yaml --from SMALL`"
        )
    if from_run is None:
        raise UsageError("plan: --from RUN is missing: name a finished or partly finished run to read the rates from")
    settings = load(config, overrides)
    from mode_ray.plan.estimate import PlanOptions, make_plan
    from mode_ray.plan.from_run import rates_from_run
    from mode_ray.plan.inventory import take_inventory
    from mode_ray.plan.machines import ClusterShape, Prices
    from mode_ray.plan.report import plan_json, plan_tables, rates_table
    from mode_ray.storage import Location

    measured = rates_from_run(Location.parse(from_run))
    planned = machines or gpus
    options = PlanOptions(
        shape=ClusterShape(machines=machines, cores=cores, gpus=gpus, capped=False) if planned else None,
        prices=Prices(cpu_hour=cpu_hour_cost, gpu_hour=gpu_hour_cost, storage_month=storage_month_cost),
        efficiency=efficiency,
        train_samples_per_second=train_samples_per_second,
    )
    made = make_plan(settings, measured, take_inventory(settings, rows, rows_per_unit), options)
    if as_json:
        sys.stdout.write(plan_json(made) + "\n")
    else:
        console().print(rates_table(measured), plan_tables(made), highlight=False)


def cluster_config(
    overrides: Overrides,
    values: Annotated[
        str | None, optional("The values (default: values.yaml in --to; an example is written there).", metavar="FILE")
    ] = None,
    to: Annotated[str, typer.Option(metavar="DIRECTORY", help="Directory of the files.")] = "cluster_configs",
    check: Annotated[bool, flag("--check", "Write nothing; exit code 1 if a file is outdated.")] = False,
) -> int:
    """Write launch files for AWS, GCP and Kubernetes from one file."""
    from mode_ray.deploy.render import VALUES_FILE, missing_starters, read_values, render_all, stale_files, write_all
    from mode_ray.storage import Location

    folder = Location.parse(to)
    starters = missing_starters(folder)
    if values is not None:
        starters.pop(VALUES_FILE, None)
    elif VALUES_FILE not in starters:
        values = (folder / VALUES_FILE).uri
    files = {**starters, **render_all(read_values(values, overrides))}
    changed = stale_files(files, folder) if check else write_all(files, folder)
    for name in changed:
        say(f"{'not up to date' if check else 'written'}: {folder / name}")
    if not check:
        say(f"{len(changed)} of {len(files)} files changed in {folder}")
    return int(check and bool(changed))


def doctor(
    overrides: Overrides,
    config: Annotated[
        str | None, optional("Config of a run: its directory is tried, its cluster joined.", metavar="FILE")
    ] = None,
    bucket: Annotated[str | None, optional("Directory to try (default: the run's).", metavar="URI")] = None,
    namespace: Annotated[str | None, optional("Kubernetes namespace whose pods are checked with kubectl.")] = None,
    values: Annotated[
        str | None, optional("Values of a `ray up` cluster on AWS: quotas and roles are checked.", metavar="FILE")
    ] = None,
) -> int:
    """Check machines, GPUs, storage, clocks and quotas before money is spent.

    With a cluster (RAY_ADDRESS or ray.address), every node is checked. Exit code 1 if a check fails.
    """
    from mode_ray.config.run import RayConfig
    from mode_ray.deploy.doctor import Checkup, examine, table
    from mode_ray.deploy.render import read_values
    from mode_ray.storage import Location

    if overrides and config is None:
        raise UsageError(f"doctor: {overrides[0]} overrides a field of a config: give it by --config")
    settings = load(config, overrides) if config is not None else None
    directory = bucket or (settings.run if settings is not None else None)
    ray = settings.ray if settings is not None else RayConfig()
    checkup = Checkup(
        bucket=Location.parse(directory) if directory else None,
        pairs=_pairs_of(settings.directory) if settings is not None else None,
        cluster=bool(ray.address or os.environ.get("RAY_ADDRESS")),
        ray=ray,
        namespace=namespace,
        values=read_values(values) if values else None,
    )
    findings = examine(checkup)
    console().print(table(findings), highlight=False)
    return int(any(finding.state == "failed" for _, finding in findings))


def _pairs_of(run: "Location") -> int | None:
    """Captions of a run that has embedded or assigned them."""
    from mode_ray.run_directory import stage_directories
    from mode_ray.stages.manifest import read_manifest

    directories = stage_directories(run)
    manifests = [read_manifest(directories[stage]) for stage in ("assign", "embed")]
    return next((manifest.rows_in for manifest in manifests if manifest is not None), None)
