"""The commands of operators: launch files from values, and jobs on a running cluster."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from mode_ray.config.load import load_config
from mode_ray.deploy.submission import DEFAULT_ADDRESS, JobRequest, JobServer
from mode_ray.errors import UsageError
from mode_ray.storage import Location

RENDER_COMMAND, SUBMIT_COMMAND = "cluster-config", "submit"
DEMO_COMMAND = "demo"
_MODULE = ("python", "-m", "mode_ray.cli")
_INTERRUPTED = 130
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Parse = Callable[[Sequence[str]], argparse.Namespace]


def add_deploy_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_overrides: Callable[[argparse.ArgumentParser], None],
    parse: Parse,
) -> None:
    """Add the commands to the command line's own.

    Args:
        commands: Where they belong.
        add_overrides: Adds `key=value` arguments to a command.
        parse: Parses a command line, as what is submitted is one.
    """
    render = commands.add_parser(
        RENDER_COMMAND, help="launch files for AWS, GCP and Kubernetes from one file of values"
    )
    render.add_argument(
        "--values",
        help="the values (default: values.yaml in the --to folder; example values are written if it is missing)",
    )
    render.add_argument("--to", default="cluster_configs", help="directory of the files (default: %(default)s)")
    render.add_argument("--check", action="store_true", help="write nothing; exit code 1 where one is not up to date")
    add_overrides(render)
    render.set_defaults(function=_render)
    submit = commands.add_parser(
        SUBMIT_COMMAND,
        help="run a command as a job on a running cluster, and follow it",
        description="Runs any mode-ray command as a Ray job, in a copy of the working directory; its exit code is the "
        "job's. Options come before the command: mode-ray submit --address URL run --config my.yaml",
    )
    address = os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS)
    submit.add_argument("--address", default=address, help="URL of the cluster's dashboard (default: %(default)s)")
    submit.add_argument("--working-dir", default=".", help="folder that the job gets a copy of (default: this one)")
    submit.add_argument("--token-file", help="file with the cluster's token (default: as RAY_AUTH_* say)")
    submit.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the job, with its value here by default; anyone who sees the dashboard can read it",
    )
    submit.add_argument("--id", help="the job's name (default: made by Ray)")
    submit.add_argument("--no-wait", action="store_true", help="leave it alone once it is submitted")
    submit.add_argument("--follow", metavar="JOB", help="follow a job that was submitted before, instead of a command")
    submit.add_argument("words", nargs=argparse.REMAINDER, metavar="command …", help="the command and its arguments")
    submit.set_defaults(function=lambda options, console: _submit(options, console, parse))


def _render(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.deploy.render import VALUES_FILE, missing_starters, read_values, render_all, stale_files, write_all

    folder = Location.parse(options.to)
    starters = missing_starters(folder)
    values: str | None = options.values
    if values is not None:
        starters.pop(VALUES_FILE, None)
    elif VALUES_FILE not in starters:
        values = (folder / VALUES_FILE).uri
    files = {**starters, **render_all(read_values(values, options.overrides))}
    if options.check:
        stale = stale_files(files, folder)
        for name in stale:
            _say(console, f"not up to date: {folder / name}")
        return 1 if stale else 0
    changed = write_all(files, folder)
    for name in changed:
        _say(console, f"written: {folder / name}")
    _say(console, f"{len(changed)} of {len(files)} files changed in {folder}")
    return 0


def _submit(options: argparse.Namespace, console: Console, parse: Parse) -> int:
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if bool(words) == bool(options.follow):
        raise UsageError("submit: name a command, such as `run --config my.yaml`, or a job to --follow")
    request = None
    if words:
        working_dir = Path(options.working_dir)
        _check(parse(words), working_dir)
        request = JobRequest([*_MODULE, *words], working_dir, _variables(options.env, os.environ), options.id)
    server = JobServer(options.address, Path(options.token_file).expanduser() if options.token_file else None)
    job: str = options.follow if request is None else server.submit(request)
    again = f"mode-ray submit --address {server.address} --follow {job}"
    stop = f"ray job stop --address {server.address} {job}"
    if request is not None:
        _say(console, f"submitted: {job}")
    if options.no_wait:
        _say(console, f"follow it: {again}\nstop it: {stop}")
        return 0
    try:
        code, ended = server.follow(job, _write)
    except KeyboardInterrupt:
        _say(console, f"\n{job} goes on without you.\nfollow it: {again}\nstop it: {stop}")
        return _INTERRUPTED
    _say(console, f"{job}: {ended}")
    return code


def _check(command: argparse.Namespace, working_dir: Path) -> None:
    """Find a user's mistake here, not a minute later on the cluster."""
    if command.command in (SUBMIT_COMMAND, RENDER_COMMAND):
        raise UsageError(f"{command.command} is no command for a cluster: it is for the machine that you work on")
    if not working_dir.is_dir():
        raise UsageError(f"--working-dir: {working_dir}: no such folder")
    if command.command == DEMO_COMMAND and _is_relative(command.directory):
        raise UsageError(
            f"demo --directory {command.directory}: would lie in the job's copy of this folder, which Ray deletes: "
            "give an absolute path that every node has, or a URI"
        )
    config: str | None = getattr(command, "config", None)
    if config is None:
        return
    if not _is_local(config):
        load_config(config, command.overrides)
        return
    file = working_dir / config
    if not file.is_file():
        raise UsageError(f"{config}: not in {working_dir}, of which the job gets a copy: put it there, or name a URI")
    load_config(str(file), command.overrides)


def _is_local(config: str) -> bool:
    """Whether it is a file of the working directory: no URI, no preset, no path on storage that machines share."""
    return not config.isidentifier() and _is_relative(config)


def _is_relative(path: str) -> bool:
    """Whether it lies below the working directory."""
    return "://" not in path and not Path(path).is_absolute()


def _variables(given: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"--env {text}: expected NAME=VALUE, or the NAME of a variable that is set here")
        if not equals and name not in here:
            raise UsageError(f"--env {name}: is not set here; give NAME=VALUE")
        variables[name] = value if equals else here[name]
    return variables


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
