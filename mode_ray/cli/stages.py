"""The commands that run the pipeline, or a stage of it that has no further commands."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mode_ray.cli.shared import Config, Overrides, Stage, command_group, console, load

if TYPE_CHECKING:
    from mode_ray.config.run import RunConfig


def run(
    config: Config,
    overrides: Overrides,
    until: Annotated[Stage, typer.Option(help="The last stage to run.")] = "evaluate",
) -> None:
    """Run all stages, or those that are not done."""
    settings = load(config, overrides)
    from mode_ray.run_directory import STAGE_NAMES

    run_stages(settings, STAGE_NAMES[: STAGE_NAMES.index(until) + 1], console())


def stage(name: Stage, help_text: str) -> Callable[..., None]:
    """The command that runs one stage."""

    def command(config: Config, overrides: Overrides) -> None:
        run_stages(load(config, overrides), (name,), console())

    command.__doc__ = help_text
    return command


def stage_group(name: Stage, help_text: str) -> typer.Typer:
    """The same as a group that has further commands."""
    group = command_group()
    group.callback()(stage(name, help_text))
    return group


def run_stages(config: "RunConfig", names: Sequence[str], to: Console) -> None:
    """Run stages of a config on Ray, and show the results if they are evaluated.

    Args:
        config: The run's.
        names: The stages, in order.
        to: Where progress and results are printed.
    """
    from mode_ray.evaluate.report.render import results_table
    from mode_ray.evaluate.stage import load_report
    from mode_ray.observe.progress import Progress
    from mode_ray.pipeline import Pipeline
    from mode_ray.run_directory import report_page
    from mode_ray.stages.session import ray_session

    pipeline = Pipeline.open(config, Progress(to))
    if pipeline.is_done(names):
        to.print(f"nothing to do: {', '.join(names)} done before", highlight=False)
    else:
        with ray_session(config.ray):
            pipeline.run(names)
    if "evaluate" in names:
        page = report_page(config.directory)
        to.print(results_table(load_report(page.parent)))
        to.print(f"report: {page}", markup=False, soft_wrap=True, highlight=False)
