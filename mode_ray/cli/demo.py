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
    settings = [
        f"run={folder / ('run-controls' if controls else 'run')}",
        f"captions.paths={[work_unit.uri for work_unit in data.train_shards]}",
        f"evaluate.tasks={[file.uri for file in data.task_files]}",
        *(["train.controls=[dense, full, random]"] if controls else []),
        *overrides,
    ]
    config = load("demo", settings)
    run_stages(config, STAGE_NAMES, console())
    if sys.stdout.isatty():
        webbrowser.open(Path(report_page(config.directory).path).as_uri())
