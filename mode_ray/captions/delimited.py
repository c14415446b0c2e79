"""Captions from CSV and TSV files. docs/inputs.md states which quotation marks are read as quotes.

Rows are parsed here: Arrow's CSV reader fails for the whole file at an unclosed quote or a very long row, and the
standard library's reader takes everything between two stray quotation marks as one field.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mode_ray.captions.clean import BAD_RECORD, COLUMN_COUNT, CaptionTable
from mode_ray.captions.delimited_records import RecordReader
from mode_ray.captions.parquet import DEFAULT_CAPTION_FIELD
from mode_ray.captions.rows import CaptionRows, text_key
from mode_ray.captions.text_lines import Lines, open_lines
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_OTHERS = {
    "\t": ("tabs", "captions.format=tsv"),
    ",": ("commas", "captions.format=csv"),
    ";": ("semicolons", "captions.delimiter=';'"),
    "|": ("vertical bars", "captions.delimiter='|'"),
}
"""The name of a delimiter, and what to set for a file that has it unexpectedly."""
_COLUMNS_NAMED = 20
_NAME_CHARACTERS = 60


def read_csv_captions(work_unit: WorkUnit, config: CaptionsConfig) -> CaptionTable:
    """Read and clean the captions of a CSV or TSV shard.

    A row's number is that of its first line; a header is line 0. Empty lines are skipped. Rows whose number of
    columns differs from the first line's are refused.

    Raises:
        DataError: Not a CSV or TSV file, or a column is missing; names file and column.
    """
    rows = CaptionRows(work_unit, config)
    with open_lines(work_unit) as lines:
        shard = _Shard.open(work_unit, config, lines)
        caption_column = shard.column(config.caption_field, "caption_field")
        key_column = None if config.key_field is None else shard.column(config.key_field, "key_field")
        for row, fields in shard.records:
            if fields is None:
                rows.refuse(row, BAD_RECORD)
            elif len(fields) != len(shard.first):
                rows.refuse(row, COLUMN_COUNT)
            else:
                key = (fields[key_column] if key_column is not None else "") or str(row)
                rows.add(row, text_key(key), [fields[caption_column].encode(errors="surrogateescape")])
    return rows.cleaned()


def count_csv_rows(work_unit: WorkUnit, config: CaptionsConfig) -> int:
    """Number of rows of a CSV or TSV shard, including refused ones.

    Raises:
        DataError: Not a CSV or TSV file.
    """
    with open_lines(work_unit) as lines:
        return sum(1 for _ in _Shard.open(work_unit, config, lines).records)


@dataclass(frozen=True)
class _Shard:
    """An opened shard.

    Attributes:
        uri: The file.
        first: The fields of its first line.
        has_header: Whether they are the names of the columns.
        delimiter: The character between columns.
        records: The rows: number of the first line, and fields, or None for a line that cannot be read.
    """

    uri: str
    first: Sequence[str]
    has_header: bool
    delimiter: str
    records: Iterator[tuple[int, list[str] | None]]

    @classmethod
    def open(cls, work_unit: WorkUnit, config: CaptionsConfig, lines: Lines) -> "_Shard":
        """Read the first line of a shard.

        Raises:
            DataError: It cannot be read as columns.
        """
        delimiter = config.delimiter or _DELIMITERS[work_unit.format]
        reader = RecordReader(lines, delimiter, config.quoting)
        first = reader.read_first(keep=not config.header)
        if first is None and config.header:
            raise DataError(f"{work_unit.uri}: no header line that names the columns; replace or remove it")
        names = [text_key(name.strip()) for name in first or []]
        if any("\r" in name for name in names):
            raise DataError(f"{work_unit.uri}: lines end with a carriage return alone; convert them to line feeds")
        return cls(work_unit.uri, names, config.header, delimiter, reader.records())

    def column(self, name: str | None, setting: str) -> int:
        """Position of a column by its name, or by its number in a file without a header.

        Raises:
            DataError: There is no such column.
        """
        if not self.has_header:
            return self._numbered(name, setting)
        name = name or DEFAULT_CAPTION_FIELD
        found = self.first.count(name)
        if found > 1:
            raise DataError(f"{self.uri}: column {name!r} occurs {found} times in the header")
        if found == 0:
            raise DataError(f"{self.uri}: {self._missing(name, setting)}")
        return self.first.index(name)

    def _numbered(self, name: str | None, setting: str) -> int:
        columns = len(self.first)
        if name is not None and name.isdecimal() and (not columns or int(name) < columns):
            return int(name)
        raise DataError(
            f"{self.uri}: captions.{setting}={name!r}, but with captions.header=false it must be the number of a "
            f"column, from 0 to {columns - 1}"
        )

    def _missing(self, name: str, setting: str) -> str:
        line = self.delimiter.join(self.first)
        for delimiter, (known_as, fix) in _OTHERS.items():
            if delimiter != self.delimiter and name in (part.strip().strip('"') for part in line.split(delimiter)):
                return f"its columns are separated by {known_as}: set {fix}"
        names = [column[:_NAME_CHARACTERS] for column in self.first[:_COLUMNS_NAMED]]
        return (
            f"no column {name!r}; set captions.{setting} to one of {names}, or captions.header=false if the file has "
            "no header line"
        )
