"""The commands that use the outputs of a run: status, atlas, drift, index, search, export, sweep and study."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mode_ray.cli.shared import Config, Overrides, Run, Stage, console, flag, load, on_ray, optional, say
from mode_ray.errors import DataError, UsageError

if TYPE_CHECKING:
    from mode_ray.storage import Location

_MAX_QUERY_BYTES = 16 << 20


def status(
    run: Run,
    watch: Annotated[bool, flag("--watch", "Repeat until the run is done.")] = False,
    until: Annotated[Stage, typer.Option(help="The last stage to watch.")] = "evaluate",
    interval_seconds: Annotated[float, typer.Option(help="Shortest time between two updates.")] = 5.0,
    stall_minutes: Annotated[float, typer.Option(help="Report a stall after this time without output.")] = 10.0,
) -> None:
    """Show the progress of a run."""
    from mode_ray.observe.status import status_table, trial_table
    from mode_ray.observe.watch import open_watch, watch_run
    from mode_ray.storage import Location

    to, location = console(), Location.parse(run)
    if watch:
        watch_run(open_watch(location, until, 60.0 * stall_minutes), to, interval_seconds, time.sleep)
        return
    to.print(status_table(location))
    trials = trial_table(location)
    if trials is not None:
        to.print(trials)
    shared = _shared_weights(location)
    if shared is not None:
        say(shared)


def _shared_weights(run: "Location") -> str | None:
    """What the experts of a trained run share, as one sentence."""
    from mode_ray.models.shared_weights import shared_weights
    from mode_ray.run_directory import STAGE_DIRECTORIES
    from mode_ray.stages.manifest import read_manifest
    from mode_ray.train.plan import expert_name

    train = run / STAGE_DIRECTORIES["train"]
    trained = read_manifest(train)
    n = None if trained is None else trained.fields.get("train.experts")
    if not isinstance(n, int):
        return None
    found = shared_weights([train / expert_name(n, expert) for expert in range(n)])
    return None if found is None else str(found)


def atlas(config: Config, overrides: Overrides) -> None:
    """Write an HTML page of the clustering: map, sizes, terms, captions."""
    with on_ray(load(config, overrides)) as pipeline:
        page = pipeline.atlas()
    say(f"atlas: {page}")


def drift(config: Config, overrides: Overrides) -> None:
    """Compare the captions with those that the clustering was fitted on."""
    with on_ray(load(config, overrides)) as pipeline:
        pipeline.drift()


def index(config: Config, overrides: Overrides) -> None:
    """Embed images with all experts, into parquet and a faiss index."""
    settings = load(config, overrides)
    from mode_ray.index.stage import index_stages, run_index
    from mode_ray.observe.progress import Progress
    from mode_ray.pipeline import build_stages, open_run
    from mode_ray.stages.session import ray_session

    run = open_run(settings)
    progress, stages = Progress(console()), index_stages(run, build_stages(run)["train"])
    with ray_session(settings.ray):
        summary = run_index(settings, stages, progress.begin, progress.unit).summary
    say(f"index: {summary['images']:,} images in {summary['parts']} parts: {stages.parts_directory}")


def search(
    config: Config,
    overrides: Overrides,
    text: Annotated[list[str] | None, typer.Option(help="A query; may be given several times.")] = None,
    texts: Annotated[str | None, typer.Option(metavar="FILE", help="File or URI with one query per line.")] = None,
    count: Annotated[int, typer.Option(help="Images to find for each query.")] = 10,
    as_one_task: Annotated[bool, flag("--as-one-task", "Route all queries together.")] = False,
) -> None:
    """Search the image index by text."""
    from mode_ray.storage import Location

    queries = [*(text or []), *(_lines(Location.parse(texts)) if texts else [])]
    if not queries or count < 1:
        raise UsageError("search needs at least one query (--text or --texts) and a --count of 1 or more")
    settings = load(config, overrides)
    from mode_ray.index.stage import search_index

    found = search_index(settings, queries, count, as_one_task=as_one_task)
    for query, hits in zip(queries, found, strict=True):
        say(query)
        for hit in hits:
            say(f"  {hit.score:.4f}  {hit.key}  {hit.source}, row {hit.row}")
            if hit.caption is not None:
                say(f"          {' '.join(hit.caption.split())}")


def _lines(file: "Location") -> list[str]:
    """The queries in a file, one per line."""
    try:
        if file.size_bytes() > _MAX_QUERY_BYTES:
            raise DataError(f"{file}: more than {_MAX_QUERY_BYTES:,} bytes: split the queries into several files")
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise UsageError(f"--texts: {file}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from None


def export(
    config: Config,
    to: Annotated[str, typer.Option(metavar="DIRECTORY", help="Directory to write; absent or empty.")],
    overrides: Overrides,
    expert: Annotated[int | None, typer.Option(help="Only this expert (default: all, with their clustering).")] = None,
    average: Annotated[bool, flag("--average", "One model: the mean of the experts' weights.")] = False,
    uniform: Annotated[bool, flag("--uniform", "With --average: do not weight by pairs.")] = False,
    shared_trunk: Annotated[
        bool, flag("--shared-trunk", "Write the experts' common trunk once, and a small head for each.")
    ] = False,
    license_id: Annotated[str | None, optional("SPDX id, such as apache-2.0.", "--license", metavar="ID")] = None,
) -> None:
    """Write trained models as folders for open_clip and Hugging Face."""
    settings = load(config, overrides)
    from mode_ray.export.run import ExportRequest, run_export
    from mode_ray.storage import Location

    target = Location.parse(to)
    request = ExportRequest(
        target=target,
        expert=expert,
        average=average,
        uniform=uniform,
        shared_trunk=shared_trunk,
        license_id=license_id,
    )
    run_export(settings, request)
    say(f"exported: {target}")


def sweep(config: Config, overrides: Overrides) -> None:
    """Try values of training fields, and write the best ones as a config."""
    with on_ray(load(config, overrides)) as pipeline:
        report = pipeline.sweep()
    from mode_ray.run_directory import SWEEP_BEST
    from mode_ray.sweep.results import sweep_table

    console().print(sweep_table(report.results, report.measurements))
    say(f"the winner as a config: {report.folder / SWEEP_BEST}")


def study(
    config: Annotated[str, typer.Option(metavar="FILE", help="The study's YAML file or its URI: docs/studies.md")],
) -> None:
    """Run a config with several values of a field, and compare the results."""
    from mode_ray.config.study import load_study

    settings = load_study(config)
    from mode_ray.study.run import STUDY_HTML, run_study

    run_study(settings, console())
    say(f"study: {settings.directory / STUDY_HTML}")
