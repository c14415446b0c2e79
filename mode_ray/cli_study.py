"""The command that runs a study: a series of runs that differ in one respect."""

import argparse

from rich.console import Console


def add_study_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line's own."""
    study = commands.add_parser("study", help="one field against the results: a run for each value, table and plot")
    study.add_argument("--config", required=True, help="the study's YAML file or URI: docs/studies.md")
    study.set_defaults(function=_study)


def _study(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.config.study import load_study
    from mode_ray.study.run import STUDY_HTML, run_study

    study = load_study(options.config)
    run_study(study, console)
    console.print(f"study: {study.directory / STUDY_HTML}", markup=False, highlight=False, soft_wrap=True)
    return 0
