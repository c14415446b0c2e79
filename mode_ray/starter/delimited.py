"""A bounded look at delimited text: the character between columns, whether a header names them, and the first rows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from mode_ray.captions.delimited_records import RecordReader
from mode_ray.captions.text_lines import open_lines
from mode_ray.stages.work_unit import WorkUnit

_USUAL = {"csv": ",", "tsv": "\t"}
_OTHERS = ("\t", ";", "|", ",")
_NAME = re.compile(r"[^\W\d][\w.:/ -]{0,40}")


@dataclass(frozen=True)
class DelimitedLook:
    """The beginning of a delimited file.

    Attributes:
        delimiter: The character between columns, where it is not the usual one of the format.
        header: Whether the first line names the columns.
        rows: The first rows by the names of their columns, or by their numbers in a file without a header.
    """

    delimiter: str | None
    header: bool
    rows: Sequence[Mapping[str, str]]


def look_at_delimited(unit: WorkUnit, known_names: Sequence[str], most_rows: int) -> DelimitedLook:
    """Read the first rows of a CSV or TSV file.

    Args:
        unit: The file.
        known_names: Names of columns in lower case: a line with one of them is a header.
        most_rows: Number of rows to read.

    Raises:
        DataError: The file cannot be read.
    """
    with open_lines(unit) as lines:
        first_line = next(iter(lines), b"").decode("utf-8-sig", errors="replace")
    usual = _USUAL[unit.format]
    delimiter = usual if usual in first_line else next((other for other in _OTHERS if other in first_line), usual)
    with open_lines(unit) as lines:
        reader = RecordReader(lines, delimiter, "auto")
        first = [cell.strip() for cell in reader.read_first(keep=True) or []]
        records = [fields for _, fields in islice(reader.records(), most_rows + 1) if fields is not None]
    header = _is_header(first, known_names)
    names = first if header else [str(number) for number in range(len(first))]
    rows = [dict(zip(names, fields, strict=False)) for fields in records[1 if header else 0 :]]
    return DelimitedLook(None if delimiter == usual else delimiter, header, rows[:most_rows])


def _is_header(cells: Sequence[str], known_names: Sequence[str]) -> bool:
    """Whether cells are names of columns rather than a row: one is a known name, or all are like names."""
    if any(cell.lower() in known_names for cell in cells):
        return True
    alike = all(_NAME.fullmatch(cell) and "://" not in cell and cell.count(" ") < 2 for cell in cells)
    return bool(cells) and alike and len(set(cells)) == len(cells)
