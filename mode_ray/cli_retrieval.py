"""The commands that use a finished run without changing it: other routing, an image index, a search in it."""

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mode_ray.config_file import load_config
from mode_ray.errors import DataError, UsageError
from mode_ray.storage import Location

RULES_COMMAND = "evaluate rules"
_MOST_QUERY_BYTES = 16 << 20


def add_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_overrides: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add the commands to the command line's own."""
    rules = commands.add_parser(
        RULES_COMMAND, help="a second report under other routing, from the stored cosines, in seconds"
    )
    rules.add_argument("--config", required=True, help="YAML file or URI of a run whose evaluate stage is done")
    rules.set_defaults(function=_rules)
    index = commands.add_parser("index", help="embed images once with all experts, into parquet and a faiss index")
    index.add_argument("--config", required=True, help="YAML file or URI of a run whose train stage is done")
    index.set_defaults(function=_index)
    search = commands.add_parser("search", help="find images of the index by texts")
    search.add_argument("--config", required=True, help="YAML file or URI of a run that has an index")
    search.add_argument("--text", action="append", default=[], help="a query; may be given several times")
    search.add_argument("--texts", help="file or URI with one query a line")
    search.add_argument("--count", type=int, default=10, help="images to find for each query (default: 10)")
    search.add_argument("--as-one-task", action="store_true", help="route all queries together, not each by itself")
    search.set_defaults(function=_search)
    for command in (rules, index, search):
        add_overrides(command)


def _rules(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.evaluate.report import results_table
    from mode_ray.evaluate.run import load_report
    from mode_ray.rescore import rescore
    from mode_ray.run_directory import REPORT_HTML

    folder = rescore(load_config(options.config, options.overrides))
    console.print(results_table(load_report(folder)))
    _say(console, f"report: {folder / REPORT_HTML}")
    return 0


def _index(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.index.run import index_stages, run_index
    from mode_ray.progress import Progress
    from mode_ray.session import ray_session

    config = load_config(options.config, options.overrides)
    progress, stages = Progress(console), index_stages(config)
    with ray_session(config.ray):
        manifest = run_index(config, stages, progress.begin, progress.unit)
    _say(
        console,
        f"index: {manifest.summary['images']:,} images in {manifest.summary['parts']} parts: {stages.parts_directory}",
    )
    return 0


def _search(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.index.run import search_index

    texts = [*options.text, *(_lines(Location.parse(options.texts)) if options.texts else [])]
    if not texts or options.count < 1:
        raise UsageError("search needs at least one query (--text or --texts) and a --count of 1 or more")
    config = load_config(options.config, options.overrides)
    found = search_index(config, texts, options.count, as_one_task=options.as_one_task)
    for text, hits in zip(texts, found, strict=True):
        table = Table(title=Text(text))
        table.add_column("score", justify="right")
        for heading in ("image", "row", "file"):
            table.add_column(heading)
        for hit in hits:
            table.add_row(f"{hit.score:.4f}", Text(hit.key), str(hit.row), Text(hit.source))
        console.print(table)
    return 0


def _lines(file: Location) -> list[str]:
    try:
        if file.size_bytes() > _MOST_QUERY_BYTES:
            raise DataError(f"{file}: more than {_MOST_QUERY_BYTES:,} bytes: search its queries in several files")
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise UsageError(f"--texts: {file}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from None


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
