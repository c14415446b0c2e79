"""The command line: the commands in the panels of `mode-ray --help`, and the exit codes of errors.

Exit codes: 0 done, 1 the data or a training run failed, 2 wrong usage, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from mode_ray import __version__
from mode_ray.cli import clusters, pipeline, results, serve, starter
from mode_ray.errors import ModeRayError
from mode_ray.util.garbage import end_without_collections

# The commands in the order of the help. Their names are those of the functions and groups.
_PANELS: dict[str, tuple[Any, ...]] = {
    "Pipeline": (
        starter.init,
        *(pipeline.run, pipeline.embed, pipeline.cluster, pipeline.assign, pipeline.features, pipeline.train),
        pipeline.evaluate,
        pipeline.demo,
    ),
    "Results": (
        *(results.status, results.atlas, results.drift, results.index, results.search, results.export),
        *(results.sweep, results.study),
    ),
    "Serving": (serve.group,),
    "Clusters": (clusters.plan, clusters.cluster_config, clusters.doctor),
}
_INTERRUPTED = 130


class _Root(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - its class is private
        return [_name_of(command) for commands in _PANELS.values() for command in commands]

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - its class is private
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe is handled by the caller of this method
        except KeyboardInterrupt:
            _complain("interrupted; run the same command again to resume")
            return _INTERRUPTED
        return code


app = typer.Typer(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})


def _name_of(command: Any) -> str:  # noqa: ANN401 - a function or a group
    return str(command.info.name if isinstance(command, typer.Typer) else command.__name__.replace("_", "-"))


for _panel, _commands in _PANELS.items():
    for _command in _commands:
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, rich_help_panel=_panel)
        else:
            app.command(_name_of(_command), rich_help_panel=_panel)(_command)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"mode-ray {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, metavar="", help="Print the version.")
    ] = False,
) -> None:
    """CLIP data experts via clustering (MoDE) on Ray."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code.
    """
    end_without_collections()
    words = None if arguments is None else list(arguments)
    try:
        code: int | None = typer.main.get_command(app).main(words, prog_name="mode-ray", standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "")  # added by pydantic
        _complain(f"{message.rstrip('.')}; see --help")
        return 2
    except ModeRayError as error:
        _complain(str(error))
        return error.exit_code
    except OSError as error:
        # An error that Ray wrapped has the worker's stack trace in its message.
        _complain(" ".join(str(getattr(error, "cause", None) or error).split()))
        return 1
    return code or 0


def _complain(text: str) -> None:
    Console(stderr=True).print(f"mode-ray: {text}", markup=False, highlight=False, soft_wrap=True)
