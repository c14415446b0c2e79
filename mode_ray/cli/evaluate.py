"""The commands that evaluate: the stage, another routing of it, and a study over several runs."""

from typing import Annotated

import typer

from mode_ray.cli.shared import Config, Overrides, console, load, say
from mode_ray.cli.stages import stage_group

group = stage_group("evaluate", "Evaluate on the tasks and write the report.")


@group.command()
def rules(
    config: Config,
    overrides: Overrides,
) -> None:
    """Write a second report under other routing, from stored cosines."""
    settings = load(config, overrides)
    from mode_ray.evaluate.report.render import results_table
    from mode_ray.evaluate.rescore import rescore
    from mode_ray.evaluate.stage import load_report
    from mode_ray.pipeline import build_stages, open_run
    from mode_ray.run_directory import REPORT_HTML

    run = open_run(settings)
    folder = rescore(run, build_stages(run)["evaluate"])
    console().print(results_table(load_report(folder)))
    say(f"report: {folder / REPORT_HTML}")


def study(
    config: Annotated[str, typer.Option(metavar="FILE", help="The study's YAML file or its URI: docs/studies.md")],
) -> None:
    """Compare the results of runs that differ in one field."""
    from mode_ray.config.study import load_study

    settings = load_study(config)
    from mode_ray.study.run import STUDY_HTML, run_study

    run_study(settings, console())
    say(f"study: {settings.directory / STUDY_HTML}")
