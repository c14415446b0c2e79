"""The command line: `mode-ray run`, one subcommand a stage, `status` and `demo`.

Exit codes: 0 done, 1 the data or a training run failed, 2 wrong usage.
"""

import argparse
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mode_ray import __version__
from mode_ray.cli_deploy import DEMO_COMMAND, add_deploy_commands
from mode_ray.cli_live import SERVE_COMMANDS
from mode_ray.cli_plan import add_plan_command
from mode_ray.cli_retrieval import RULES_COMMAND, add_commands
from mode_ray.cli_serve import add_serve
from mode_ray.cli_study import add_study_command
from mode_ray.config import RunConfig
from mode_ray.config_file import load_config
from mode_ray.errors import ModeRayError
from mode_ray.storage import Location

_LOG_WIDTH = 140
_EXTEND = "cluster extend"
_ADD = "train add"
_RETRY = "train retry"
# Their first words take overrides by themselves, which argparse cannot tell from a subcommand.
_TWO_WORD_COMMANDS = (_EXTEND, _ADD, _RETRY, RULES_COMMAND, *SERVE_COMMANDS)
_STAGE_HELP = {
    "embed": "embed the captions",
    "cluster": "fit the fine centers and group them into experts",
    "assign": "assign every caption to its nearest center",
    "train": "train the seed, the dense baseline and the experts",
    "evaluate": "evaluate on the tasks and write the report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    # A log file has no width of its own: wide enough there for the results table.
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    try:
        code: int = options.function(options, console)
    except ModeRayError as error:
        Console(stderr=True).print(f"mode-ray: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except OSError as error:
        # Ray wraps a worker's error, with its stack trace.
        reason = " ".join(str(getattr(error, "cause", None) or error).split())
        Console(stderr=True).print(f"mode-ray: {reason}", markup=False, highlight=False, soft_wrap=True)
        return 1
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
    from mode_ray.run_directory import report_page

    return report_page(config.directory)


def _run(options: argparse.Namespace, console: Console) -> int:
    config = load_config(options.config, options.overrides)
    names = tuple(_STAGE_HELP)
    run_stages(config, names[: names.index(options.until) + 1], console)
    return 0


def _stage(options: argparse.Namespace, console: Console) -> int:
    run_stages(load_config(options.config, options.overrides), (options.command,), console)
    return 0


def _drift(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.pipeline import Pipeline
    from mode_ray.progress import Progress
    from mode_ray.session import ray_session

    config = load_config(options.config, options.overrides)
    pipeline = Pipeline(config, Progress(console))
    with ray_session(config.ray):
        pipeline.drift()
    return 0


def _atlas(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.pipeline import Pipeline
    from mode_ray.progress import Progress
    from mode_ray.session import ray_session

    config = load_config(options.config, options.overrides)
    pipeline = Pipeline(config, Progress(console))
    with ray_session(config.ray):
        page = pipeline.atlas()
    console.print(f"atlas: {page}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _extend(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.extension import ExtensionRequest
    from mode_ray.pipeline import Pipeline
    from mode_ray.progress import Progress
    from mode_ray.session import ray_session

    config = load_config(options.config, options.overrides)
    request = ExtensionRequest(
        centers=options.centers,
        target=Location.parse(options.to),
        far_quantile=config.drift.far_quantile if options.far_quantile is None else options.far_quantile,
        new_expert=options.new_expert,
    )
    pipeline = Pipeline(config, Progress(console))
    with ray_session(config.ray):
        clustering = pipeline.extend(request)
    console.print(
        f"{len(clustering.centers_md)} centers, maps for n={sorted(clustering.coarse)}: {request.target}\n"
        f"assign captions with it: cluster.standing={request.target}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _retry(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.pipeline import Pipeline
    from mode_ray.progress import Progress
    from mode_ray.session import ray_session

    config = load_config(options.config, options.overrides)
    pipeline = Pipeline(config, Progress(console))
    with ray_session(config.ray):
        pipeline.retry(options.trial)
    return 0


def _add(options: argparse.Namespace, console: Console) -> int:
    standing = Location.parse(getattr(options, "from")).uri
    config = load_config(options.config, [*options.overrides, f"train.standing={standing}"])
    run_stages(config, ("train",), console)
    console.print(
        f"later stages: mode-ray evaluate --config {options.config} train.standing={standing}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _sweep(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.pipeline import Pipeline
    from mode_ray.progress import Progress
    from mode_ray.run_directory import SWEEP_BEST
    from mode_ray.session import ray_session
    from mode_ray.sweep.results import sweep_table

    config = load_config(options.config, options.overrides)
    pipeline = Pipeline(config, Progress(console))
    with ray_session(config.ray):
        report = pipeline.sweep()
    console.print(sweep_table(report.results, report.measurements))
    console.print(f"the winner as a config: {report.folder / SWEEP_BEST}", soft_wrap=True, highlight=False)
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.export.run import ExportRequest, run_export
    from mode_ray.run_directory import stage_directories

    config = load_config(options.config, options.overrides)
    request = ExportRequest(
        target=Location.parse(options.to),
        expert=options.expert,
        average=options.average,
        uniform=options.uniform,
        license_id=options.license,
    )
    run_export(config, request, stage_directories(config.directory))
    console.print(f"exported: {request.target}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _status(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.status import status_table, trial_table
    from mode_ray.watch import open_watch, watch_run

    run = Location.parse(options.run)
    if options.watch:
        watch = open_watch(run, options.until, 60.0 * options.stall_minutes)
        watch_run(watch, console, options.interval_seconds, time.sleep)
        return 0
    console.print(status_table(run))
    trials = trial_table(run)
    if trials is not None:
        console.print(trials)
    return 0


def _demo(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.demo.build import build_demo_data
    from mode_ray.progress import Progress
    from mode_ray.run_directory import STAGE_NAMES

    directory = Location.parse(options.directory)
    console.print(f"[demo] data: emoji and icons from Python packages, in {directory / 'data'}", markup=False)
    data = build_demo_data(directory / "data", on_progress=Progress(console).work)
    overrides = [
        f"run={directory / ('run-controls' if options.controls else 'run')}",
        f"captions.paths={[shard.uri for shard in data.train_shards]}",
        f"evaluate.tasks={[file.uri for file in data.task_files]}",
        *(["train.controls=[dense, full, random]"] if options.controls else []),
        *options.overrides,
    ]
    config = load_config("demo", overrides)
    run_stages(config, STAGE_NAMES, console)
    if sys.stdout.isatty():
        webbrowser.open(Path(report_location(config).path).as_uri())
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parsed arguments; overrides may stand behind an option, where argparse no longer looks for them."""
    parser = _parser()
    options, rest = parser.parse_known_args(_joined(arguments))
    if rest:
        if not hasattr(options, "overrides") or any(text.startswith("-") or "=" not in text for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mode-ray", description="CLIP data experts via clustering (MoDE) on Ray.")
    parser.add_argument("--version", action="version", version=f"mode-ray {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run all stages, or what is left of them")
    run.add_argument("--until", choices=_STAGE_HELP, default=tuple(_STAGE_HELP)[-1], help="the last stage to run")
    run.set_defaults(function=_run)
    stages = [commands.add_parser(name, help=text, description=text) for name, text in _STAGE_HELP.items()]
    for command in stages:
        command.set_defaults(function=_stage)
    for command in (run, *stages):
        command.add_argument("--config", required=True, help="YAML file or URI, or a preset: demo, small, paper")
        _add_overrides(command)
    atlas = commands.add_parser("atlas", help="an HTML page to judge a clustering by: map, sizes, terms, captions")
    atlas.add_argument("--config", required=True, help="YAML file or URI of a run whose cluster stage is done")
    _add_overrides(atlas)
    atlas.set_defaults(function=_atlas)
    drift = commands.add_parser("drift", help="how the captions differ from those the clustering was fitted on")
    drift.add_argument("--config", required=True, help="YAML file or URI of a run whose assign stage is done")
    _add_overrides(drift)
    drift.set_defaults(function=_drift)
    _add_extend(commands.add_parser(_EXTEND, help="a new clustering with further centers for far captions"))
    sweep = commands.add_parser("sweep", help="try out training fields, and write the best ones as a config")
    sweep.add_argument("--config", required=True, help="YAML file or URI of a run whose assign stage is done")
    _add_overrides(sweep)
    sweep.set_defaults(function=_sweep)
    _add_retry(commands.add_parser(_RETRY, help="train one run again that failed, and no other"))
    _add_addition(commands.add_parser(_ADD, help="train only the experts that another run does not have"))
    add_commands(commands, _add_overrides)
    add_study_command(commands)
    add_deploy_commands(commands, _add_overrides, _parse)
    add_serve(commands, _add_overrides)
    _add_export(commands.add_parser("export", help="trained models as folders for open_clip and the Hugging Face hub"))
    status = commands.add_parser("status", help="show how far a run is")
    status.add_argument("run", help="the run directory: a path, s3:// or gs:// URI")
    status.add_argument("--watch", action="store_true", help="show it again and again until the run is done")
    status.add_argument("--until", choices=_STAGE_HELP, default=tuple(_STAGE_HELP)[-1], help="the last stage to watch")
    status.add_argument("--interval-seconds", type=float, default=5.0, help="between two looks, at least (default: 5)")
    status.add_argument(
        "--stall-minutes", type=float, default=10.0, help="say so if nothing is new for so long (default: 10)"
    )
    status.set_defaults(function=_status)
    add_plan_command(commands, _add_overrides)
    demo = commands.add_parser(DEMO_COMMAND, help="the whole pipeline on emoji and icons, in minutes")
    demo.add_argument("--directory", default="demo-run", help="where data and run go (default: demo-run)")
    demo.add_argument("--controls", action="store_true", help="train the controls Full-4 and Random-4 too")
    _add_overrides(demo)
    demo.set_defaults(function=_demo)
    return parser


def _add_extend(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, help="YAML file or URI of a run whose assign stage is done")
    command.add_argument("--centers", type=int, required=True, help="how many new fine centers")
    command.add_argument("--to", required=True, help="directory of the new clustering; absent or empty")
    command.add_argument("--new-expert", action="store_true", help="the new centers make an expert of their own")
    command.add_argument("--far-quantile", type=float, help="what counts as far (default: drift.far_quantile)")
    _add_overrides(command)
    command.set_defaults(function=_extend)


def _add_retry(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, help="YAML file or URI of the run")
    command.add_argument("trial", help="number of an expert, or name of a run as `mode-ray status` shows it")
    _add_overrides(command)
    command.set_defaults(function=_retry)


def _add_addition(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, help="YAML file or URI of the new run, its assign stage done")
    command.add_argument("--from", required=True, help="the other run's directory; nothing in it changes")
    _add_overrides(command)
    command.set_defaults(function=_add)


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, help="YAML file or URI of a run whose train stage is done")
    command.add_argument("--to", required=True, help="directory to write; absent or empty")
    command.add_argument("--expert", type=int, help="this expert alone (default: all, with their clustering)")
    command.add_argument("--average", action="store_true", help="one model, the mean of the experts' weights")
    command.add_argument("--uniform", action="store_true", help="with --average: all alike, not by their pairs")
    command.add_argument("--license", help="licence id of the weights for the model card, such as apache-2.0")
    _add_overrides(command)
    command.set_defaults(function=_export)


def _joined(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments with a command of two words as one."""
    for command in _TWO_WORD_COMMANDS:
        words = command.split()
        if list(arguments[: len(words)]) == words:
            return [command, *arguments[len(words) :]]
    return arguments


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override config fields")


if __name__ == "__main__":
    sys.exit(main())
