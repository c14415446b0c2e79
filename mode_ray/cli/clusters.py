"""The commands for clusters: estimates of a run, launch files, and jobs on a running cluster."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from mode_ray.cli.shared import Config, Overrides, console, flag, load, optional, say
from mode_ray.deploy.submission import DEFAULT_ADDRESS, JobRequest, JobServer
from mode_ray.errors import UsageError

_INTERRUPTED = 130


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


def submit(
    ctx: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="The command.", default_factory=list, show_default=False)
    ],
    address: Annotated[
        str, typer.Option(metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = DEFAULT_ADDRESS,
    working_dir: Annotated[Path, typer.Option(help="Folder to copy to the job.")] = Path(),
    token_file: Annotated[
        Path | None, optional("File with the cluster's token (default: RAY_AUTH_TOKEN_PATH).")
    ] = None,
    env: Annotated[
        list[str] | None, optional("A variable for the job; the dashboard shows it.", metavar="NAME[=VALUE]")
    ] = None,
    job_id: Annotated[str | None, optional("Name of the job (default: chosen by Ray).", "--id")] = None,
    no_wait: Annotated[bool, flag("--no-wait", "Exit once the job is submitted.")] = False,
    follow: Annotated[str | None, optional("Follow a job that was submitted before.", metavar="JOB")] = None,
) -> int:
    """Run a command as a job on a running cluster, and follow it.

    The job runs any mode-ray command in a copy of the working directory. submit exits with the job's exit code.

    Options come before the command: mode-ray submit --address URL run --config my.yaml
    """
    if bool(words) == bool(follow):
        raise UsageError("submit: name a command, such as `run --config my.yaml`, or a job to --follow")
    request = None
    if words:
        from mode_ray.deploy.job_checks import check_command, job_variables

        check_command(*_parsed(ctx, words), working_dir)
        command = ["python", "-m", "mode_ray", *words]
        request = JobRequest(command, working_dir, job_variables(env or [], os.environ), job_id)
    server = JobServer(address, token_file.expanduser() if token_file else None)
    job = str(follow) if request is None else server.submit(request)
    commands = (
        f"follow it: mode-ray submit --address {server.address} --follow {job}\n"
        f"stop it: ray job stop --address {server.address} {job}"
    )
    if request is not None:
        say(f"submitted: {job}")
    if no_wait:
        say(commands)
        return 0
    try:
        code, ended = server.follow(job, lambda text: print(text, end="", flush=True))  # noqa: T201 - the job's own log
    except KeyboardInterrupt:
        say(f"\n{job} continues to run.\n{commands}")
        return _INTERRUPTED
    say(f"{job}: {ended}")
    return code


def _parsed(ctx: typer.Context, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """The name and the parameters of the command in a command line, without running it."""
    root = ctx.find_root()
    group = cast("TyperGroup", root.command)
    _, command, rest = group.resolve_command(root, list(words))
    return words[0], command.make_context(words[0], rest, parent=root).params if command else {}
