"""The commands that use a run without changing its stages: status, an image index, a search in it, an export."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mode_ray.cli.shared import Config, Overrides, Run, Stage, console, flag, load, say
from mode_ray.errors import DataError, UsageError
from mode_ray.util.tables import WideTable

if TYPE_CHECKING:
    from mode_ray.storage import Location

_MOST_QUERY_BYTES = 16 << 20


def status(
    run: Run,
    watch: Annotated[bool, flag("--watch", "Show it again and again until the run is done.")] = False,
    until: Annotated[Stage, typer.Option(help="The last stage to watch.")] = "evaluate",
    interval_seconds: Annotated[float, typer.Option(help="Least time between two looks.")] = 5.0,
    stall_minutes: Annotated[float, typer.Option(help="Report if nothing is new for so long.")] = 10.0,
) -> None:
    """Show how far a run is."""
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


def index(config: Config, overrides: Overrides) -> None:
    """Embed images with all experts, into parquet and a faiss index."""
    settings = load(config, overrides)
    from mode_ray.index.stage import index_stages, run_index
    from mode_ray.observe.progress import Progress
    from mode_ray.stages.session import ray_session

    progress, stages = Progress(console()), index_stages(settings)
    with ray_session(settings.ray):
        summary = run_index(settings, stages, progress.begin, progress.unit).summary
    say(f"index: {summary['images']:,} images in {summary['parts']} parts: {stages.parts_directory}")


def search(
    config: Config,
    overrides: Overrides,
    text: Annotated[list[str] | None, typer.Option(help="A query; may be given several times.")] = None,
    texts: Annotated[str | None, typer.Option(metavar="FILE", help="File or URI with one query a line.")] = None,
    count: Annotated[int, typer.Option(help="Images to find for each query.")] = 10,
    as_one_task: Annotated[bool, flag("--as-one-task", "Route all queries together.")] = False,
) -> None:
    """Find images of the index by texts."""
    from mode_ray.storage import Location

    queries = [*(text or []), *(_lines(Location.parse(texts)) if texts else [])]
    if not queries or count < 1:
        raise UsageError("search needs at least one query (--text or --texts) and a --count of 1 or more")
    settings = load(config, overrides)
    from mode_ray.index.stage import search_index

    found = search_index(settings, queries, count, as_one_task=as_one_task)
    for query, hits in zip(queries, found, strict=True):
        table = WideTable(query, "image", "file", "row", "score", words=2)
        for hit in hits:
            table.add_row(hit.key, hit.source, str(hit.row), f"{hit.score:.4f}")
        console().print(table)


def export(
    config: Config,
    to: Annotated[str, typer.Option(metavar="DIRECTORY", help="Directory to write; absent or empty.")],
    overrides: Overrides,
    expert: Annotated[int | None, typer.Option(help="Only this expert (default: all, with their clustering).")] = None,
    average: Annotated[bool, flag("--average", "One model: the mean of the experts' weights.")] = False,
    uniform: Annotated[bool, flag("--uniform", "With --average: do not weight by pairs.")] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence of the weights, such as apache-2.0.")
    ] = None,
) -> None:
    """Write trained models as folders for open_clip and Hugging Face."""
    settings = load(config, overrides)
    from mode_ray.export.run import ExportRequest, run_export
    from mode_ray.run_directory import stage_directories
    from mode_ray.storage import Location

    target = Location.parse(to)
    request = ExportRequest(target=target, expert=expert, average=average, uniform=uniform, license_id=license_id)
    run_export(settings, request, stage_directories(settings.directory))
    say(f"exported: {target}")


def _lines(file: "Location") -> list[str]:
    try:
        if file.size_bytes() > _MOST_QUERY_BYTES:
            raise DataError(f"{file}: more than {_MOST_QUERY_BYTES:,} bytes: search its queries in several files")
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise UsageError(f"--texts: {file}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from None
