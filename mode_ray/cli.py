"""The command line: `mode-ray run`, one subcommand a stage, `status` and `demo`.

Exit codes: 0 done, 1 the data or a training run failed, 2 wrong usage.
"""

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mode_ray import __version__
from mode_ray.config import RunConfig
from mode_ray.config_file import load_config
from mode_ray.errors import ModeRayError
from mode_ray.storage import Location

_LOG_WIDTH = 140
_STAGE_HELP = {
    "embed": "embed the captions",
    "cluster": "fit the fine centers and group them into experts",
    "assign": "assign every caption to its nearest center",
    "train": "train the seed, the dense baseline and the experts",
    "evaluate": "evaluate on the tasks and write the report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    # A log file has no width of its own: wide enough there for the results table.
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    try:
        code: int = options.function(options, console)
    except ModeRayError as error:
        Console(stderr=True).print(f"mode-ray: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        Console(stderr=True).print("mode-ray: interrupted; run the same command again to go on")
        return 130
    return code


def run_stages(config: RunConfig, names: Sequence[str], console: Console) -> None:
    """Run stages of a config on Ray, and show the results where they are evaluated."""
    # Imported late, so that `--help` and usage errors do not wait for Ray and torch.
    from mode_ray.evaluate.report import results_table
    from mode_ray.evaluate.run import load_report
    from mode_ray.pipeline import Pipeline
    from mode_ray.progress import Progress
    from mode_ray.session import ray_session

    pipeline = Pipeline(config, Progress(console))
    if pipeline.is_done(names):
        console.print(f"nothing to do: {', '.join(names)} done before", highlight=False)
    else:
        with ray_session(config.ray):
            pipeline.run(names)
    if "evaluate" in names:
        console.print(results_table(load_report(report_location(config).parent)))
        console.print(f"report: {report_location(config)}", soft_wrap=True, highlight=False)


def report_location(config: RunConfig) -> Location:
    """Where the HTML report of a run lies."""
    from mode_ray.evaluate.run import REPORT_HTML
    from mode_ray.pipeline import stage_directories

    return stage_directories(config.directory)["evaluate"] / REPORT_HTML


def _run(options: argparse.Namespace, console: Console) -> int:
    config = load_config(options.config, options.overrides)
    names = tuple(_STAGE_HELP) if options.command == "run" else (options.command,)
    run_stages(config, names, console)
    return 0


def _status(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.status import status_table, trial_table

    run = Location.parse(options.run)
    console.print(status_table(run))
    trials = trial_table(run)
    if trials is not None:
        console.print(trials)
    return 0


def _demo(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.demo.build import build_demo_data
    from mode_ray.pipeline import STAGE_NAMES
    from mode_ray.progress import Progress

    directory = Location.parse(options.directory)
    console.print(f"[demo] data: emoji and icons from Python packages, in {directory / 'data'}", markup=False)
    data = build_demo_data(directory / "data", on_progress=Progress(console).work)
    overrides = [
        f"run={directory / ('run-controls' if options.controls else 'run')}",
        f"captions.paths={[shard.uri for shard in data.train_shards]}",
        f"evaluate.tasks={[file.uri for file in data.task_files]}",
        *(["train.random_control=true"] if options.controls else []),
        *options.overrides,
    ]
    config = load_config("demo", overrides)
    run_stages(config, STAGE_NAMES, console)
    if sys.stdout.isatty():
        webbrowser.open(Path(report_location(config).path).as_uri())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mode-ray", description="CLIP data experts via clustering (MoDE) on Ray.")
    parser.add_argument("--version", action="version", version=f"mode-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {"run": "run all stages, or what is left of them", **_STAGE_HELP}.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", required=True, help="YAML file or URI, or a preset: demo, small, paper")
        _add_overrides(command)
        command.set_defaults(function=_run)
    status = commands.add_parser("status", help="show how far a run is")
    status.add_argument("run", help="the run directory: a path, s3:// or gs:// URI")
    status.set_defaults(function=_status)
    demo = commands.add_parser("demo", help="the whole pipeline on emoji and icons, in minutes")
    demo.add_argument("--directory", default="demo-run", help="where data and run go (default: demo-run)")
    demo.add_argument("--controls", action="store_true", help="train the Random-4 control too")
    _add_overrides(demo)
    demo.set_defaults(function=_demo)
    return parser


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override config fields")


if __name__ == "__main__":
    sys.exit(main())
