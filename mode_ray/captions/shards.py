"""The table of work units: one input shard each, large parquet files split by row groups."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from mode_ray.captions.files import find_files
from mode_ray.config import CaptionsConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.storage import FileEntry, Location, is_damage

ShardFormat = Literal["parquet", "webdataset", "jsonl", "csv", "tsv"]
SUFFIX_FORMATS: dict[str, ShardFormat] = {
    "parquet": "parquet",
    "pq": "parquet",
    "tar": "webdataset",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
}
PAIR_FORMATS: frozenset[ShardFormat] = frozenset({"parquet", "webdataset"})
ALL_FORMATS: frozenset[ShardFormat] = frozenset(SUFFIX_FORMATS.values())
_FOOTER_READERS = 16
_ROWS_AT_ONCE = 8192
_SPLIT_BY = "max_rows_per_unit"


@dataclass(frozen=True, kw_only=True, order=True, slots=True)
class Shard:
    """One work unit: a whole file, or a range of a parquet file's row groups.

    A pair's identity is (unit, row): keys repeat on the web, and file names may repeat between directories.

    Attributes:
        unit: Name that is unique in the run and stable between invocations; outputs are named after it.
        uri: The file.
        format: How to read it.
        row_groups: First and last-but-one row group, or None for the whole file.
        first_row: Row number of the first row, counted over the whole file.
        size_bytes: Size of the file when it was listed.
        modified_unix_seconds: When the file was last written, by then; 0 where that is not known.
        rows: Rows of the unit, where the listing came by them.
    """

    unit: str
    uri: str
    format: ShardFormat
    row_groups: tuple[int, int] | None = None
    first_row: int = 0
    size_bytes: int = 0
    modified_unix_seconds: float = 0.0
    rows: int | None = None

    @property
    def location(self) -> Location:
        """The file."""
        return Location(self.uri)


def list_shards(
    config: CaptionsConfig, known: Sequence[Shard] = (), formats: Collection[ShardFormat] = ALL_FORMATS
) -> list[Shard]:
    """List the work units of a run in order of their URIs.

    Args:
        config: The paths, and the size of a unit.
        known: An earlier listing with the same config; files that still have that size and time are not opened again.
        formats: What to look for in directories.

    Raises:
        DataError: A path that does not exist or matches nothing, a file of no known format, a file named twice.
    """
    files = find_files(config.paths, lambda name: suffix_format(name) in formats)
    twice = [uri for uri, count in Counter(file.location.uri for file in files).items() if count > 1]
    if twice:
        raise DataError(f"captions.paths: {twice[0]} is named twice; every pair would count double")
    wholes = [_whole(file, config) for file in sorted(files)]
    before = _by_file(known)
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        split = readers.map(lambda whole: _split(whole, before, config.max_rows_per_unit), wholes)
        return [shard for shards in split for shard in shards]


def require_images(shards: Sequence[Shard]) -> None:
    """Refuse to train on shards that hold captions only.

    Raises:
        UsageError: Names the first of them.
    """
    without = [shard for shard in shards if shard.format not in PAIR_FORMATS]
    if without:
        raise UsageError(
            f"{without[0].uri}: holds captions only ({len(without)} of {len(shards)} shards do); experts train on "
            "parquet or WebDataset shards. Run the stages embed, cluster and assign, and train in a run over shards "
            "with images"
        )


def unit_name(location: Location) -> str:
    """A readable name that is unique by URI."""
    stem = location.name.rsplit(".", 1)[0]
    return f"{stem}-{hashlib.blake2b(location.uri.encode(), digest_size=8).hexdigest()}"


def suffix_format(name: str) -> ShardFormat | None:
    """The format that a file's name tells, or None; text may be gzipped."""
    stem = name.lower()
    packed = stem.endswith(".gz")
    shard_format = SUFFIX_FORMATS.get(stem.removesuffix(".gz").rsplit(".", 1)[-1])
    return None if packed and shard_format in PAIR_FORMATS else shard_format


def _whole(file: FileEntry, config: CaptionsConfig) -> Shard:
    """A file as one unit."""
    shard_format = suffix_format(file.location.name) if config.format == "auto" else config.format
    if shard_format is None:
        raise DataError(
            f"{file.location}: unknown suffix; set captions.format, or name .parquet, .tar, .jsonl or .csv files"
        )
    return Shard(
        unit=unit_name(file.location),
        uri=file.location.uri,
        format=shard_format,
        size_bytes=file.size_bytes,
        modified_unix_seconds=file.modified_unix_seconds,
    )


def _by_file(shards: Sequence[Shard]) -> Mapping[Shard, list[Shard]]:
    """Units by the file that they are of, as `_whole` describes it."""
    by_file: dict[Shard, list[Shard]] = {}
    for shard in shards:
        whole = replace(shard, unit=unit_name(shard.location), row_groups=None, first_row=0, rows=None)
        by_file.setdefault(whole, []).append(shard)
    return by_file


def _split(whole: Shard, before: Mapping[Shard, list[Shard]], max_rows: int) -> Sequence[Shard]:
    if whole in before and whole.modified_unix_seconds > 0:
        return before[whole]
    # A caption takes more than a byte: only files with more bytes than that can hold too many rows.
    if whole.format != "parquet" or whole.size_bytes <= max_rows:
        return [whole]
    try:
        metadata = whole.location.read_parquet_footer()
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        if is_damage(error, whole.location):
            return [whole]  # the unit that reads it is quarantined, with the reason
        raise DataError(f"{whole.uri}: cannot be read ({error})") from None
    if metadata.num_rows <= max_rows:
        return [replace(whole, rows=metadata.num_rows)]
    shards, first_group, first_row, row = [], 0, 0, 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row > first_row and row + rows - first_row > max_rows:
            shards.append(_part(whole, (first_group, group), first_row, row))
            first_group, first_row = group, row
        row += rows
    return [*shards, _part(whole, (first_group, metadata.num_row_groups), first_row, row)]


def _part(whole: Shard, groups: tuple[int, int], first_row: int, end_row: int) -> Shard:
    return replace(
        whole,
        unit=f"{whole.unit}-g{groups[0]:05d}",
        row_groups=groups,
        first_row=first_row,
        rows=end_row - first_row,
    )


def write_shards(location: Location, shards: Sequence[Shard], note: Mapping[str, str] | None = None) -> None:
    """Write the table of shards, for workers and invocations that need all of them.

    Args:
        location: The parquet file.
        shards: The shards.
        note: Kept in the file's metadata.
    """
    groups = [shard.row_groups or (None, None) for shard in shards]
    table = pa.table(
        {
            "unit": pa.array([shard.unit for shard in shards], pa.string()),
            "uri": pa.array([shard.uri for shard in shards], pa.string()),
            "format": pa.array([shard.format for shard in shards], pa.string()),
            "first_group": pa.array([first for first, _ in groups], pa.int32()),
            "end_group": pa.array([end for _, end in groups], pa.int32()),
            "first_row": pa.array([shard.first_row for shard in shards], pa.int64()),
            "size_bytes": pa.array([shard.size_bytes for shard in shards], pa.int64()),
            "modified_unix_seconds": pa.array([shard.modified_unix_seconds for shard in shards], pa.float64()),
            "rows": pa.array([shard.rows for shard in shards], pa.int64()),
        }
    )
    location.write_table(table.replace_schema_metadata(dict(note or {})))


def read_shards(location: Location) -> list[Shard]:
    """Read what `write_shards` wrote."""
    return _shards_of(location.read_table())


def _shards_of(table: pa.Table) -> list[Shard]:
    shards = []
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):  # a quarter of a million rows are normal
        for row in batch.to_pylist():
            first, end = row.pop("first_group"), row.pop("end_group")
            shards.append(Shard(**row, row_groups=None if first is None else (first, end)))
    return shards


def write_listing(location: Location, shards: Sequence[Shard], config: CaptionsConfig) -> None:
    """Keep a listing in the run directory for the next invocation; see `read_listing`."""
    write_shards(location, shards, {_SPLIT_BY: str(config.max_rows_per_unit)})


def read_listing(location: Location, config: CaptionsConfig) -> list[Shard]:
    """The listing of an earlier invocation; none where there is none, or where units were of another size.

    Raises:
        UsageError: The file is something else.
    """
    if not location.exists():
        return []
    try:
        table = location.read_table()
        split_by = (table.schema.metadata or {}).get(_SPLIT_BY.encode())
        return _shards_of(table) if split_by == str(config.max_rows_per_unit).encode() else []
    except (pa.ArrowInvalid, KeyError, TypeError):
        raise UsageError(f"{location}: not a listing of the input files: remove it") from None
