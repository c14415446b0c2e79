"""The table of work units: one input shard each, large parquet files split by row groups."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mode_ray.config import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.storage import Location

ShardFormat = Literal["parquet", "webdataset"]
SUFFIX_FORMATS: dict[str, ShardFormat] = {"parquet": "parquet", "pq": "parquet", "tar": "webdataset"}
_FOOTER_READERS = 16


@dataclass(frozen=True, kw_only=True, order=True)
class Shard:
    """One work unit: a whole file, or a range of a parquet file's row groups.

    A pair's identity is (unit, row): keys repeat on the web, and file names may repeat between directories.

    Attributes:
        unit: Name that is unique in the run and stable between invocations; outputs are named after it.
        uri: The file.
        format: How to read it.
        row_groups: First and last-but-one row group, or None for the whole file.
        first_row: Row number of the first row, counted over the whole file.
    """

    unit: str
    uri: str
    format: ShardFormat
    row_groups: tuple[int, int] | None = None
    first_row: int = 0

    @property
    def location(self) -> Location:
        """The file."""
        return Location(self.uri)


def list_shards(config: CaptionsConfig) -> list[Shard]:
    """List the work units of a run in order of their URIs.

    Raises:
        DataError: A path that does not exist or matches nothing, a file of no known format, a file named twice.
    """
    files = [file for path in config.paths for file in _expand(path)]
    twice = [uri for uri, count in Counter(file.uri for file in files).items() if count > 1]
    if twice:
        raise DataError(f"captions.paths: {twice[0]} is named twice; every pair would count double")
    formats = {file: _format_of(file, config) for file in files}
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        split = readers.map(lambda file: _split(file, formats[file], config.max_rows_per_unit), sorted(files))
        return [shard for shards in split for shard in shards]


def unit_name(location: Location) -> str:
    """A readable name that is unique by URI."""
    stem = location.name.rsplit(".", 1)[0]
    return f"{stem}-{hashlib.blake2b(location.uri.encode(), digest_size=8).hexdigest()}"


def is_damage(error: Exception, location: Location) -> bool:
    """Whether an error of arrow's parquet reader is about the bytes themselves, so that trying again is of no use.

    Arrow raises OSError for undecodable bytes too, then without an errno; remote errors never carry one.
    """
    return not isinstance(error, OSError) or (location.is_local and error.errno is None)


def _expand(path: str) -> list[Location]:
    location = Location.parse(path)
    if location.is_directory():
        found: Iterable[Location] = location.files(recursive=True)
        files = [file for file in found if _suffix(file) in SUFFIX_FORMATS]
        if not files:
            raise DataError(f"captions.paths: {path}: no .parquet or .tar file in this directory")
        return files
    files = location.glob()
    if not files:
        raise DataError(f"captions.paths: {path}: no such file, and nothing matches it")
    return files


def _suffix(file: Location) -> str:
    return file.name.rsplit(".", 1)[-1].lower()


def _format_of(file: Location, config: CaptionsConfig) -> ShardFormat:
    if config.format != "auto":
        return config.format
    if _suffix(file) not in SUFFIX_FORMATS:
        raise DataError(f"{file}: unknown suffix; set captions.format, or name .parquet or .tar files")
    return SUFFIX_FORMATS[_suffix(file)]


def _split(file: Location, shard_format: ShardFormat, max_rows: int) -> Sequence[Shard]:
    whole = Shard(unit=unit_name(file), uri=file.uri, format=shard_format)
    # A caption takes more than a byte: only files with more bytes than that can hold too many rows.
    if shard_format != "parquet" or file.size_bytes() <= max_rows:
        return [whole]
    try:
        with file.open_input() as source:
            metadata = pq.read_metadata(source)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        if is_damage(error, file):
            return [whole]  # the unit that reads it is quarantined, with the reason
        raise DataError(f"{file}: cannot be read ({error})") from None
    if metadata.num_rows <= max_rows:
        return [whole]
    shards, first_group, first_row, row = [], 0, 0, 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row > first_row and row + rows - first_row > max_rows:
            shards.append(_part(whole, first_group, group, first_row))
            first_group, first_row = group, row
        row += rows
    return [*shards, _part(whole, first_group, metadata.num_row_groups, first_row)]


def _part(whole: Shard, first_group: int, end_group: int, first_row: int) -> Shard:
    return Shard(
        unit=f"{whole.unit}-g{first_group:05d}",
        uri=whole.uri,
        format=whole.format,
        row_groups=(first_group, end_group),
        first_row=first_row,
    )


def write_shards(location: Location, shards: Sequence[Shard]) -> None:
    """Write the table of shards, for workers that need all of them."""
    groups = [shard.row_groups or (None, None) for shard in shards]
    location.write_table(
        pa.table(
            {
                "unit": [shard.unit for shard in shards],
                "uri": [shard.uri for shard in shards],
                "format": [shard.format for shard in shards],
                "first_group": pa.array([first for first, _ in groups], pa.int32()),
                "end_group": pa.array([end for _, end in groups], pa.int32()),
                "first_row": pa.array([shard.first_row for shard in shards], pa.int64()),
            }
        )
    )


def read_shards(location: Location) -> list[Shard]:
    """Read what `write_shards` wrote."""
    shards = []
    for row in location.read_table().to_pylist():
        first, end = row.pop("first_group"), row.pop("end_group")
        shards.append(Shard(**row, row_groups=None if first is None else (first, end)))
    return shards
