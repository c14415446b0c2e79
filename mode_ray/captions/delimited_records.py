"""Records of delimited text: one line, or several where a quoted field contains line breaks.

Files of captions are often written without quoting (CC3M, CC12M), and captions may begin with a quotation mark. So
`auto` takes a mark as a quote only if the rest of the line, or the lines after it, agree.
"""

from collections import deque
from collections.abc import Iterator
from typing import Literal

from mode_ray.captions.text_lines import MAX_LINE_BYTES, Lines

Quoting = Literal["auto", "quoted", "none"]
Record = tuple[int, list[str] | None]
"""Number of the first line, from 0, and the fields; None for a line that cannot be read."""
_Line = tuple[int, str | None]

_QUOTE = '"'
_MAX_RECORD_LINES = 10_000
_ROWS_OF_COMMAS = 3  # a line of a caption often has a comma, so one line is not enough evidence


class RecordReader:
    """Reads the records of a file.

    Args:
        lines: The lines of the file, from its beginning.
        delimiter: The character between fields.
        quoting: As `captions.quoting`.
    """

    def __init__(self, lines: Lines, delimiter: str, quoting: Quoting) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self._quoting = quoting
        self._count = 0
        self._ahead: deque[_Line] = deque()
        self._columns: int | None = None
        self._kept: list[Record] = []
        self._left = self._read_records()

    def read_first(self, *, keep: bool) -> list[str] | None:
        """The fields of the first record, or None if there is none that can be read.

        Args:
            keep: Whether `records` returns it too.
        """
        first = next(self._left, None)
        if first is None:
            return None
        if keep:
            self._kept.append(first)
        self._columns = None if first[1] is None else len(first[1])
        return first[1]

    def records(self) -> Iterator[Record]:
        """The records after the first one. Empty lines are skipped.

        Every line of an unreadable record is a record, so that the rows after an unclosed quote are counted.
        """
        yield from self._kept
        yield from self._left

    def _read_records(self) -> Iterator[Record]:
        while (line := self._next_line()) is not None:
            number, text = line
            if text is None:
                yield number, None
            elif _QUOTE not in text or self._quoting == "none":
                plain = _without_line_end(text)
                if plain:
                    yield number, plain.split(self._delimiter)
            else:
                yield from self._read_quoted(number, text)

    def _read_quoted(self, number: int, text: str) -> Iterator[Record]:
        """The record that begins with a line that has a quotation mark."""
        fields, unclosed = self._scan(text)
        if unclosed is None:
            yield number, self._fitting(fields, text)
            return
        as_text = [*fields, *_without_line_end(text[unclosed:]).split(self._delimiter)]
        is_row = self._quoting == "auto" and len(as_text) == self._columns
        taken: list[_Line] = []
        joined, closed = self._join(text, fields, unclosed, taken, is_row=is_row)
        fits = joined is not None and self._columns in (None, len(joined))
        # Only the lines of one field are read again, so that reading takes linear time.
        if self._quoting == "auto" and not fits and closed <= (joined is not None):
            # The quote ends nowhere, inside a column, beyond other rows, or in a wrong number of columns: it is text.
            self._ahead.extendleft(reversed(taken))
            yield number, as_text
        elif joined is not None:
            yield number, joined
        else:
            yield number, None
            yield from ((line, None) for line, _ in taken)

    def _join(
        self, text: str, fields: list[str], unclosed: int, taken: list[_Line], *, is_row: bool
    ) -> tuple[list[str] | None, int]:
        """Read further lines, into `taken`, until all quotes are closed.

        Args:
            text: The first line.
            fields: Its fields before the one with the quote.
            unclosed: Where that one begins.
            taken: Receives the lines.
            is_row: Whether the first line is a whole row if its quote is text.

        Returns:
            The fields, or None for no valid record; and the number of fields of several lines that were closed.
        """
        closed, searched = 0, len(text)
        while len(taken) < _MAX_RECORD_LINES:
            line = self._next_line()
            if line is None:
                return None, closed
            taken.append(line)
            if line[1] is None or len(text) + len(line[1]) > MAX_LINE_BYTES:
                return None, closed
            text += line[1]
            end = _closing_quote(text, searched)
            searched = len(text)
            if is_row and not closed and self._are_rows(taken, closed=end is not None):
                return None, closed
            if end is None:
                continue
            if not self._ends_field(text, end + 1):
                return None, closed
            closed += 1
            more, next_unclosed = self._scan(text, unclosed)
            fields += more
            if next_unclosed is None:
                return fields, closed
            unclosed = next_unclosed
        return None, closed

    def _are_rows(self, taken: list[_Line], *, closed: bool) -> bool:
        """Whether the lines after an unclosed quote are rows of their own, so that the quote is text.

        Args:
            taken: The lines.
            closed: Whether the last of them closes the quote.
        """
        if self._delimiter != ",":
            return self._is_row(taken[-1])
        # The lines may still be those of a quoted caption: a comma does not separate columns only.
        evidence = len(taken) == _ROWS_OF_COMMAS and not closed and self._columns != 1
        return evidence and all(map(self._is_row, taken))

    def _is_row(self, line: _Line) -> bool:
        return line[1] is not None and self._row_length(line[1]) == self._columns

    def _row_length(self, text: str) -> int:
        """Number of fields of a line by itself."""
        fields, unclosed = self._scan(text)
        return len(fields) + (0 if unclosed is None else text.count(self._delimiter, unclosed) + 1)

    def _fitting(self, fields: list[str], text: str) -> list[str]:
        """The fields of a line whose quotes are closed; in `auto` as plain text if only this has enough columns."""
        if self._quoting == "auto" and self._columns is not None and len(fields) != self._columns:
            plain = _without_line_end(text).split(self._delimiter)
            if len(plain) == self._columns:
                return plain
        return fields

    def _scan(self, text: str, start: int = 0) -> tuple[list[str], int | None]:
        """The fields of a text from `start` on, and where the first field with an unclosed quote begins."""
        fields: list[str] = []
        delimiter = self._delimiter
        text = _without_line_end(text)
        while True:
            if text.startswith(_QUOTE, start):
                end = _closing_quote(text, start + 1)
                if end is None:
                    return fields, start
                if self._ends_field(text, end + 1):
                    fields.append(text[start + 1 : end].replace('""', _QUOTE))
                    if end + 1 >= len(text):
                        return fields, None
                    start = end + 2
                    continue
            end = text.find(delimiter, start)
            if end < 0:
                return [*fields, text[start:]], None
            fields.append(text[start:end])
            start = end + 1

    def _ends_field(self, text: str, at: int) -> bool:
        return at >= len(text) or text[at] == self._delimiter or text[at : at + 3] in ("\n", "\r\n")

    def _next_line(self) -> _Line | None:
        if self._ahead:
            return self._ahead.popleft()
        return self._fetch()

    def _fetch(self) -> _Line | None:
        line = next(self._lines, None)
        if line is None:
            return None
        self._count += 1
        return self._count - 1, None if self._lines.cut else line.decode(errors="surrogateescape")


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _closing_quote(text: str, start: int) -> int | None:
    """The first quotation mark from `start` on that is not doubled; `start` is inside a quoted field."""
    at = text.find(_QUOTE, start)
    while at >= 0 and text.startswith(_QUOTE, at + 1):
        at = text.find(_QUOTE, at + 2)
    return at if at >= 0 else None
