"""Options, the console and helpers that several commands use.

Commands import slow packages (Ray, torch, numpy) when they run, so `--help` and usage errors answer at once.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

if TYPE_CHECKING:
    from mode_ray.config.run import RunConfig
    from mode_ray.pipeline import Pipeline

_LOG_WIDTH = 140

Stage = Literal["embed", "cluster", "assign", "features", "train", "evaluate"]


class CommandGroup(TyperGroup):
    """A group that is also a command: `mode-ray train --config …` and `mode-ray train retry …`."""

    allow_interspersed_args = True

    # The contexts of typer have a private class.
    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:  # noqa: ANN401
        """The context of a subcommand if the first word names one, otherwise that of the group's own command."""
        command = self.commands.get(args[0]) if args else None
        if command is None:
            return super().make_context(info_name, args, parent=parent, **extra)
        return command.make_context(f"{info_name} {args[0]}", args[1:], parent=parent, **extra)


def _subcommands(ctx: typer.Context) -> list[str]:
    """Completions for an argument: subcommands are typed in the same position."""
    return list(ctx.command.commands) if isinstance(ctx.command, CommandGroup) else []


Config = Annotated[
    str, typer.Option(metavar="FILE", help="YAML file or URI of the run, or a preset: demo, small, paper.")
]
Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override config fields.",
        default_factory=list,
        show_default=False,
        autocompletion=_subcommands,
    ),
]
Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The run directory: a path, s3:// or gs:// URI.", autocompletion=_subcommands),
]


def flag(name: str, help_text: str) -> Any:  # noqa: ANN401 - the return type of typer.Option
    """An option without a value."""
    return typer.Option(name, help=help_text, metavar="")


def optional(help_text: str, *names: str, **settings: Any) -> Any:  # noqa: ANN401 - as above
    """An option whose default is explained by its help text."""
    return typer.Option(*names, help=help_text, show_default=False, **settings)


def command_group(name: str) -> typer.Typer:
    """A group whose callback is a command, and which may have subcommands."""
    return typer.Typer(name=name, cls=CommandGroup, invoke_without_command=True, subcommand_metavar="| COMMAND ...")


def console() -> Console:
    """The console of standard output. A log file has no width, so it gets one that fits all tables."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_LOG_WIDTH if wide else None)


def say(text: str) -> None:
    """Print text without wrapping or markup."""
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def load(config: str, overrides: Sequence[str]) -> "RunConfig":
    """The config of a run; as `load_config`, which is imported when it is needed."""
    from mode_ray.config.load import load_config

    return load_config(config, overrides)


@contextmanager
def on_ray(config: "RunConfig") -> "Iterator[Pipeline]":
    """The pipeline of a run, with Ray running."""
    from mode_ray.observe.progress import Progress
    from mode_ray.pipeline import Pipeline
    from mode_ray.stages.session import ray_session

    pipeline = Pipeline.open(config, Progress(console()))
    with ray_session(config.ray):
        yield pipeline
