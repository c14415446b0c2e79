"""Checks of a command before it is submitted as a job, so that mistakes are reported at once."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mode_ray.config.load import load_config
from mode_ray.errors import UsageError

_LOCAL_COMMANDS = ("submit", "cluster-config")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_command(command: str, parameters: Mapping[str, Any], working_dir: Path) -> None:
    """Check a command and its config.

    Raises:
        UsageError: The command cannot run as a job, a file does not exist, or the config is wrong.
    """
    if command in _LOCAL_COMMANDS:
        raise UsageError(f"{command} cannot run as a job: run it on your own machine")
    if not working_dir.is_dir():
        raise UsageError(f"--working-dir: {working_dir}: no such folder")
    if command == "demo" and _is_relative(parameters["directory"]):
        raise UsageError(
            f"demo --directory {parameters['directory']}: is inside the job's copy of this folder, which Ray "
            "deletes: give an absolute path that every node has, or a URI"
        )
    config: str | None = parameters.get("config")
    if config is None:
        return
    # A file of the working directory: not a URI, a preset, or a path on shared storage.
    if not config.isidentifier() and _is_relative(config):
        if not (working_dir / config).is_file():
            raise UsageError(
                f"{config}: not in {working_dir}, which is copied to the job: put it there, or give a URI"
            )
        config = str(working_dir / config)
    load_config(config, parameters.get("overrides", ()))


def job_variables(given: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a job.

    Args:
        given: NAME=VALUE, or NAME for the value on this machine.
        here: Variables of this machine.

    Raises:
        UsageError: A name is invalid, or is not set on this machine.
    """
    variables = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"--env {text}: expected NAME=VALUE, or the NAME of a variable that is set here")
        if not equals and name not in here:
            raise UsageError(f"--env {name}: is not set here; give NAME=VALUE")
        variables[name] = value if equals else here[name]
    return variables


def _is_relative(path: str) -> bool:
    """Whether a path is relative to the working directory."""
    return "://" not in path and not Path(path).is_absolute()
