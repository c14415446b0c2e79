"""The commands of operators: launch files from values, and jobs on a running cluster."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from mode_ray.cli.shared import Overrides, flag, say
from mode_ray.deploy.submission import DEFAULT_ADDRESS, JobRequest, JobServer
from mode_ray.errors import UsageError

_MODULE = ("python", "-m", "mode_ray")
_INTERRUPTED = 130


def cluster_config(
    overrides: Overrides,
    values: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The values (default: values.yaml in --to; an example is written there)."),
    ] = None,
    to: Annotated[str, typer.Option(metavar="DIRECTORY", help="Directory of the files.")] = "cluster_configs",
    check: Annotated[bool, flag("--check", "Write nothing; exit code 1 if a file is not up to date.")] = False,
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
    if check:
        stale = stale_files(files, folder)
        for name in stale:
            say(f"not up to date: {folder / name}")
        return 1 if stale else 0
    changed = write_all(files, folder)
    for name in changed:
        say(f"written: {folder / name}")
    say(f"{len(changed)} of {len(files)} files changed in {folder}")
    return 0


def submit(
    ctx: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="The command.", default_factory=list, show_default=False)
    ],
    address: Annotated[
        str, typer.Option(metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = DEFAULT_ADDRESS,
    working_dir: Annotated[Path, typer.Option(help="Folder that the job gets a copy of.")] = Path(),
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the cluster's token (default: RAY_AUTH_TOKEN_PATH)."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A variable for the job; the dashboard shows it."),
    ] = None,
    job_id: Annotated[str | None, typer.Option("--id", help="The job's name (default: made by Ray).")] = None,
    no_wait: Annotated[bool, flag("--no-wait", "End once the job is submitted.")] = False,
    follow: Annotated[str | None, typer.Option(metavar="JOB", help="Follow a job that was submitted before.")] = None,
) -> int:
    """Run a command as a job on a running cluster, and follow it.

    The job runs any mode-ray command in a copy of the working directory. Its exit code is that of submit.

    Options come before the command: mode-ray submit --address URL run --config my.yaml
    """
    if bool(words) == bool(follow):
        raise UsageError("submit: name a command, such as `run --config my.yaml`, or a job to --follow")
    request = None
    if words:
        from mode_ray.deploy.job_checks import check_command, job_variables

        check_command(*_parsed(ctx, words), working_dir)
        request = JobRequest([*_MODULE, *words], working_dir, job_variables(env or [], os.environ), job_id)
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
        code, ended = server.follow(job, _write)
    except KeyboardInterrupt:
        say(f"\n{job} continues to run.\n{commands}")
        return _INTERRUPTED
    say(f"{job}: {ended}")
    return code


def _parsed(ctx: typer.Context, words: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """The command and the parameters that a command line consists of, without running it."""
    root = ctx.find_root()
    group = cast("TyperGroup", root.command)
    _, command, rest = group.resolve_command(root, list(words))
    return words[0], command.make_context(words[0], rest, parent=root).params if command else {}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
