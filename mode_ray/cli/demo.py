"""The command that shows the whole pipeline on data from Python packages."""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from mode_ray.cli.shared import Overrides, console, flag, load, say
from mode_ray.cli.stages import run_stages


def demo(
    overrides: Overrides,
    directory: Annotated[str, typer.Option(help="Where data and run are stored.")] = "demo-run",
    controls: Annotated[bool, flag("--controls", "Also train the controls Full-4 and Random-4.")] = False,
) -> None:
    """Run the whole pipeline on emoji and icons, in minutes."""
    from mode_ray.demo.build import build_demo_data
    from mode_ray.observe.progress import Progress
    from mode_ray.run_directory import STAGE_NAMES, report_page
    from mode_ray.storage import Location

    folder = Location.parse(directory)
    say(f"[demo] data: emoji and icons from Python packages, in {folder / 'data'}")
    data = build_demo_data(folder / "data", on_progress=Progress(console()).work)
    run = "run-controls" if controls else "run"
    settings = [
        f"run={folder / run}",
        f"captions.paths={[work_unit.uri for work_unit in data.train_shards]}",
        f"evaluate.tasks={[file.uri for file in data.task_files]}",
        *(["train.controls=[dense, full, random]"] if controls else []),
        *overrides,
    ]
    config = load("demo", settings)
    run_stages(config, STAGE_NAMES, console())
    page = report_page(config.directory)
    # As the user wrote it, unless an override names another run directory.
    shown = f"{directory.rstrip('/')}/{run}" if config.directory == folder / run else config.directory.uri
    for line in next_steps(shown, page.uri.removeprefix(config.directory.uri)):
        say(line)
    if sys.stdout.isatty() and page.is_local:
        webbrowser.open(Path(page.path).as_uri())


def next_steps(run: str, page: str) -> list[str]:
    """What to do with the finished run.

    Args:
        run: Its directory.
        page: The report's path within it, with the leading slash.
    """
    return [
        f"Read the report:    {run}{page}",
        f'Use it in Python:   mode_ray.load("{run}")',
        f"Serve it over HTTP: mode-ray serve {run}",
    ]
