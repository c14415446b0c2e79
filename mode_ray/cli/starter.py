"""The command that writes the first config of a run."""

from typing import Annotated

import typer

from mode_ray.cli.shared import optional, say
from mode_ray.errors import UsageError


def init(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Files, directories or globs; local, s3:// or gs://.")
    ],
    to: Annotated[str, typer.Option(metavar="FILE", help="The config file to write.")] = "mode-ray.yaml",
    run: Annotated[str | None, optional("The run directory (default: FILE without suffix, and -run).")] = None,
    preset: Annotated[str | None, optional("Settings to take over: small or paper.")] = None,
) -> None:
    """Write a config after a look at the data."""
    from mode_ray.starter.look import look_at, summary
    from mode_ray.starter.write import config_text, next_steps
    from mode_ray.storage import Location

    file = Location.parse(to)
    if file.exists():
        raise UsageError(f"{to}: exists; remove it, or name another file with --to")
    look = look_at(data)
    stem = to.removesuffix(".yaml").removesuffix(".yml")
    file.write_text(config_text(look, run or f"{stem}-run", preset))
    say(f"found: {summary(look)}")
    for line in [f"wrote {to}", *next_steps(look, to)]:
        say(line)
