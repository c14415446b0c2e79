"""The commands that run the pipeline and its stages, with the subcommands of the stages."""

import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mode_ray.cli.shared import Config, Overrides, Stage, command_group, console, flag, load, on_ray, optional, say

if TYPE_CHECKING:
    from mode_ray.config.run import RunConfig
    from mode_ray.storage import Location


def run_stages(config: "RunConfig", names: Sequence[str], to: Console) -> None:
    """Run stages of a config on Ray, and print the results if `evaluate` is one of them."""
    from mode_ray.observe.progress import Progress
    from mode_ray.pipeline import Pipeline
    from mode_ray.run_directory import report_page
    from mode_ray.stages.session import joins_cluster, ray_session

    progress = Progress(to)
    pipeline = Pipeline.open(config, progress, names)
    if pipeline.is_done(names):
        to.print(f"nothing to do: {', '.join(names)} done before", highlight=False)
    else:
        if not joins_cluster(config.ray):
            progress.say("starting Ray on this machine, which takes some seconds")
        with ray_session(config.ray):
            pipeline.run(names)
    if "evaluate" in names:
        _show_report(report_page(config.directory), to)


def _show_report(page: "Location", to: Console) -> None:
    from mode_ray.evaluate.report.render import results_table
    from mode_ray.evaluate.stage import load_report

    to.print(results_table(load_report(page.parent)))
    to.print(f"report: {page}", markup=False, soft_wrap=True, highlight=False)


def _stage(name: Stage, help_text: str) -> Callable[..., None]:
    """The command that runs one stage."""

    def command(config: Config, overrides: Overrides) -> None:
        run_stages(load(config, overrides), (name,), console())

    command.__name__, command.__doc__ = name, help_text
    return command


def _stage_group(name: Stage, help_text: str) -> typer.Typer:
    """The command that runs one stage, as a group that has subcommands."""
    group = command_group(name)
    group.callback()(_stage(name, help_text))
    return group


embed = _stage("embed", "Embed the captions.")
cluster = _stage_group("cluster", "Fit the fine centers and group them into experts.")
assign = _stage("assign", "Assign every caption to its nearest center.")
features = _stage("features", "Compute the features of locked towers, with train.data.mode=features.")
train = _stage_group("train", "Train the seed, the dense baseline and the experts.")
evaluate = _stage_group("evaluate", "Evaluate on the tasks and write the report.")


def run(
    config: Config,
    overrides: Overrides,
    until: Annotated[Stage, typer.Option(help="The last stage to run.")] = "evaluate",
) -> None:
    """Run all stages that are not finished."""
    settings = load(config, overrides)
    from mode_ray.run_directory import STAGE_NAMES

    run_stages(settings, STAGE_NAMES[: STAGE_NAMES.index(until) + 1], console())


def demo(
    overrides: Overrides,
    directory: Annotated[str, typer.Option(help="Directory of the data and the run.")] = "demo-run",
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
    name = "run-controls" if controls else "run"
    settings = [
        f"run={folder / name}",
        f"captions.paths={[work_unit.uri for work_unit in data.train_shards]}",
        f"evaluate.tasks={[file.uri for file in data.task_files]}",
        *(["train.controls=[dense, full, random]"] if controls else []),
        *overrides,
    ]
    config = load("demo", settings)
    run_stages(config, STAGE_NAMES, console())
    page = report_page(config.directory)
    # As the user wrote it, unless an override names another run directory.
    shown = f"{directory.rstrip('/')}/{name}" if config.directory == folder / name else config.directory.uri
    for line in next_steps(shown, page.uri.removeprefix(config.directory.uri)):
        say(line)
    if sys.stdout.isatty() and page.is_local:
        webbrowser.open(Path(page.path).as_uri())


def next_steps(run: str, page: str) -> list[str]:
    """What to do with a finished run.

    Args:
        run: Its directory.
        page: The report's path within it, with the leading slash.
    """
    return [
        f"Read the report:    {run}{page}",
        f'Use it in Python:   mode_ray.load("{run}")',
        f"Serve it over HTTP: mode-ray serve {run}",
    ]


@cluster.command()
def extend(
    config: Config,
    centers: Annotated[int, typer.Option(help="Number of new fine centers.")],
    to: Annotated[str, typer.Option(metavar="DIRECTORY", help="Directory of the new clustering; absent or empty.")],
    overrides: Overrides,
    new_expert: Annotated[bool, flag("--new-expert", "Give the new centers an expert of their own.")] = False,
    far_quantile: Annotated[
        float | None, optional("Quantile above which a caption is far (default: drift.far_quantile).")
    ] = None,
) -> None:
    """Make a new clustering with additional centers for far captions."""
    settings = load(config, overrides)
    from mode_ray.new_data.extend import ExtensionRequest
    from mode_ray.storage import Location

    quantile = settings.drift.far_quantile if far_quantile is None else far_quantile
    target = Location.parse(to)
    request = ExtensionRequest(centers=centers, target=target, far_quantile=quantile, new_expert=new_expert)
    with on_ray(settings) as pipeline:
        clustering = pipeline.extend(request)
    say(
        f"{len(clustering.centers_md)} centers, maps for n={sorted(clustering.coarse)}: {target}\n"
        f"assign captions with it: cluster.reuse={target}"
    )


@train.command()
def retry(
    config: Config,
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL", help="Expert's number, or name of the run as in mode-ray status.")
    ],
    overrides: Overrides,
) -> None:
    """Resume one failed training run."""
    with on_ray(load(config, overrides)) as pipeline:
        pipeline.retry(trial)


@train.command()
def add(
    config: Config,
    source: Annotated[str, typer.Option("--from", metavar="RUN", help="The other run's directory; it is only read.")],
    overrides: Overrides,
) -> None:
    """Train only the experts that another run does not have."""
    from mode_ray.storage import Location

    reused = Location.parse(source).uri
    settings = load(config, [*overrides, f"train.reuse={reused}"])
    stages: tuple[Stage, ...] = ("features", "train") if settings.uses_features else ("train",)
    run_stages(settings, stages, console())
    say(f"later stages: mode-ray evaluate --config {config} train.reuse={reused}")


@evaluate.command()
def rules(config: Config, overrides: Overrides) -> None:
    """Write a second report with other routing from the stored cosines."""
    settings = load(config, overrides)
    from mode_ray.evaluate.rescore import rescore
    from mode_ray.pipeline import build_stages, open_run
    from mode_ray.run_directory import REPORT_HTML

    opened = open_run(settings)
    _show_report(rescore(opened, build_stages(opened)["evaluate"]) / REPORT_HTML, console())
