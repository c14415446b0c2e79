"""Captions from CSV and TSV files with a header line; fields may be quoted, and quoted fields may contain newlines.

The standard library parses the rows. Arrow's CSV reader can skip rows with a wrong number of columns, but it reports
their positions only for a file in memory, and an unclosed quote or a very long row makes it fail for the whole file.
"""

import csv
from collections.abc import Iterator

from mode_ray.captions.clean import BAD_RECORD, COLUMN_COUNT, CaptionTable
from mode_ray.captions.parquet import DEFAULT_CAPTION_FIELD
from mode_ray.captions.rows import CaptionRows, text_key
from mode_ray.captions.text_lines import MAX_LINE_BYTES, Lines, open_lines
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_COLUMNS_NAMED = 20
_NAME_CHARACTERS = 60


class _RecordLines:
    """The lines of a file for `csv.reader`. A record with too many bytes raises an error; reading can continue."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._record_bytes = 0

    def begin_record(self) -> int:
        """Start a record, and return the number of its first line."""
        self._record_bytes = 0
        return self._lines.count

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._record_bytes += len(line)
        if self._lines.cut or self._record_bytes > MAX_LINE_BYTES:
            raise csv.Error("row too long")
        text = line.decode(errors="surrogateescape")
        return text.removeprefix("\ufeff") if self._lines.count == 1 else text


def _records(lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """The first line of each record, and its fields, or None if it cannot be read.

    Every line of an unreadable record counts as a row, so that the rows after an unclosed quote are counted.
    """
    source = _RecordLines(lines)
    reader = csv.reader(source, delimiter=delimiter)
    while True:
        start = source.begin_record()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield from ((line, None) for line in range(start, lines.count))
            continue
        if fields:
            yield start, fields


def read_csv_captions(work_unit: WorkUnit, config: CaptionsConfig) -> CaptionTable:
    """Read and clean the captions of a CSV or TSV shard.

    A row's number is that of its first line; the header is line 0. Empty lines are skipped. Rows whose number of
    columns differs from the header's are refused.

    Raises:
        DataError: Not a CSV or TSV file, or a column is missing; names file and column.
    """
    rows = CaptionRows(work_unit, config)
    with open_lines(work_unit) as lines:
        records = _records(lines, _DELIMITERS[work_unit.format])
        header = _header(work_unit, records)
        caption_column = _column(work_unit, header, config.caption_field or DEFAULT_CAPTION_FIELD, "caption_field")
        key_column = None if config.key_field is None else _column(work_unit, header, config.key_field, "key_field")
        for row, fields in records:
            if fields is None:
                rows.refuse(row, BAD_RECORD)
            elif len(fields) != len(header):
                rows.refuse(row, COLUMN_COUNT)
            else:
                key = (fields[key_column] if key_column is not None else "") or str(row)
                rows.add(row, text_key(key), [fields[caption_column].encode(errors="surrogateescape")])
    return rows.cleaned()


def count_csv_rows(work_unit: WorkUnit) -> int:
    """Number of rows of a CSV or TSV shard, including refused ones.

    Raises:
        DataError: Not a CSV or TSV file.
    """
    with open_lines(work_unit) as lines:
        records = _records(lines, _DELIMITERS[work_unit.format])
        _header(work_unit, records)
        return sum(1 for _ in records)


def _header(work_unit: WorkUnit, records: Iterator[tuple[int, list[str] | None]]) -> list[str]:
    _, header = next(records, (0, None))
    if header is None:
        raise DataError(f"{work_unit.uri}: no header line that names the columns; replace or remove it")
    return [text_key(name.strip()) for name in header]


def _column(work_unit: WorkUnit, header: list[str], name: str, setting: str) -> int:
    if header.count(name) > 1:
        raise DataError(f"{work_unit.uri}: column {name!r} occurs {header.count(name)} times in the header")
    if name not in header:
        names = [column[:_NAME_CHARACTERS] for column in header[:_COLUMNS_NAMED]]
        raise DataError(f"{work_unit.uri}: no column {name!r}; set captions.{setting} to one of {names}")
    return header.index(name)
