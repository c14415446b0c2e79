"""Lists the input files of a run as work units. The run directory stores the listing."""

import logging
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby, pairwise, repeat

import pyarrow as pa

from mode_ray.captions.files import find_files
from mode_ray.captions.shard_choice import PACKED_TAR, ShardChoice, is_packed_tar
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.stages.work_unit import (
    ALL_FORMATS,
    ShardFormat,
    WorkUnit,
    WorkUnitTable,
    read_work_units,
    suffix_format,
    unit_name,
    write_work_units,
)
from mode_ray.storage import FileEntry, Location, is_damage

_logger = logging.getLogger(__name__)
_FOOTER_READERS = 16
_FILES_AT_ONCE = 8192
_SPLIT_BY = "max_rows_per_unit"


def list_work_units(
    config: CaptionsConfig,
    known: Sequence[WorkUnit] = (),
    formats: Collection[ShardFormat] = ALL_FORMATS,
    field: str = "captions.paths",
) -> WorkUnitTable:
    """List the work units of a run in order of their URIs.

    Args:
        config: The paths, and the size of a unit.
        known: An earlier listing. Files with unchanged size and time are not opened again.
        formats: File formats to include from directories.
        field: The config field of the paths, for messages.

    Raises:
        DataError: A path does not exist or matches nothing, a directory has several formats, or a file has an unknown
            format or is named twice.
    """
    files = find_files(config.paths, ShardChoice(config.format, formats, _logger.warning), field)
    files.sort(reverse=True)
    for file, other in pairwise(reversed(files)):
        if file.location == other.location:
            raise DataError(f"{field}: {file.location} is named twice; its pairs would be counted twice")
    before = _KnownFiles(known)

    def work_units() -> Iterator[WorkUnit]:
        with ThreadPoolExecutor(_FOOTER_READERS) as readers:
            while files:
                wholes = [_whole(file, config) for file in reversed(files[-_FILES_AT_ONCE:])]
                del files[-_FILES_AT_ONCE:]  # the table has them from here on
                units = [before.units_of(whole) for whole in wholes]
                for parts in readers.map(_split, wholes, units, repeat(config.max_rows_per_unit)):
                    yield from parts

    return WorkUnitTable.of(work_units())


def _whole(file: FileEntry, config: CaptionsConfig) -> WorkUnit:
    """A file as one unit."""
    if is_packed_tar(file.location.name):
        raise DataError(f"{file.location}: {PACKED_TAR}")
    shard_format = suffix_format(file.location.name) if config.format == "auto" else config.format
    if shard_format is None:
        raise DataError(
            f"{file.location}: unknown suffix; set captions.format, or name .parquet, .tar, .jsonl or .csv files"
        )
    return WorkUnit(
        unit=unit_name(file.location),
        uri=file.location.uri,
        format=shard_format,
        size_bytes=file.size_bytes,
        modified_unix_seconds=file.modified_unix_seconds,
    )


class _KnownFiles:
    """The units of an earlier listing by file; the listing and the lookups are in order of URIs."""

    def __init__(self, work_units: Sequence[WorkUnit]) -> None:
        self._files = ((uri, list(units)) for uri, units in groupby(work_units, key=lambda work_unit: work_unit.uri))
        self._next = next(self._files, None)

    def units_of(self, whole: WorkUnit) -> Sequence[WorkUnit]:
        """The units of a file if its size and time are unchanged; else none."""
        while self._next is not None and self._next[0] < whole.uri:
            self._next = next(self._files, None)
        if self._next is None or self._next[0] != whole.uri or whole.modified_unix_seconds == 0.0:
            return ()
        units = self._next[1]
        earlier = replace(units[0], unit=whole.unit, row_groups=None, first_row=0, rows=None)
        return units if earlier == whole else ()


def _split(whole: WorkUnit, known: Sequence[WorkUnit], max_rows: int) -> Sequence[WorkUnit]:
    """The units of a file: the known ones, or those from its footer if it may have too many rows."""
    if known:
        return known
    # A row takes more than one byte, so a file with at most `max_rows` bytes has no more rows than that.
    if whole.format != "parquet" or whole.size_bytes <= max_rows:
        return [whole]
    try:
        metadata = whole.location.read_parquet_footer()
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        if is_damage(error, whole.location):
            return [whole]  # the embed stage quarantines it with the reason
        raise DataError(f"{whole.uri}: cannot be read ({error})") from None
    if metadata.num_rows <= max_rows:
        return [replace(whole, rows=metadata.num_rows)]
    work_units, first_group, first_row, row = [], 0, 0, 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row > first_row and row + rows - first_row > max_rows:
            work_units.append(_part(whole, (first_group, group), first_row, row))
            first_group, first_row = group, row
        row += rows
    return [*work_units, _part(whole, (first_group, metadata.num_row_groups), first_row, row)]


def _part(whole: WorkUnit, groups: tuple[int, int], first_row: int, end_row: int) -> WorkUnit:
    unit = f"{whole.unit}-g{groups[0]:05d}"
    return replace(whole, unit=unit, row_groups=groups, first_row=first_row, rows=end_row - first_row)


def write_listing(location: Location, work_units: Sequence[WorkUnit], config: CaptionsConfig) -> None:
    """Store a listing in the run directory for the next invocation."""
    write_work_units(location, work_units, {_SPLIT_BY: str(config.max_rows_per_unit)})


def read_listing(location: Location, config: CaptionsConfig) -> WorkUnitTable:
    """The listing of an earlier invocation; empty if there is none, or if the size of units has changed.

    Raises:
        UsageError: The file is not a listing.
    """
    if not location.exists():
        return WorkUnitTable.of([])
    try:
        work_units = read_work_units(location)
        split_by = (work_units.table.schema.metadata or {}).get(_SPLIT_BY.encode())
        return work_units if split_by == str(config.max_rows_per_unit).encode() else WorkUnitTable.of([])
    except (pa.ArrowInvalid, KeyError):
        raise UsageError(f"{location}: not a listing of the input files: remove it") from None
