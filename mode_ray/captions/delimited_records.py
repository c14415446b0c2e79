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
_LINES_AHEAD = 1
_LINES_AHEAD_COMMA = 3  # a line of a caption often has a comma, so one line is not enough evidence


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
        self._lines_ahead = _LINES_AHEAD_COMMA if delimiter == "," else _LINES_AHEAD
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
        if self._quoting == "auto" and self._next_lines_are_rows(as_text):
            yield number, as_text
            return
        taken: list[_Line] = []
        joined, closed_once = self._join(text, fields, unclosed, taken)
        if joined is not None:
            yield number, joined
        elif self._quoting == "auto" and not closed_once:
            # The quote ends nowhere, or inside a column: it is text.
            self._ahead.extendleft(reversed(taken))
            yield number, as_text
        else:
            yield number, None
            yield from ((line, None) for line, _ in taken)

    def _join(self, text: str, fields: list[str], unclosed: int, taken: list[_Line]) -> tuple[list[str] | None, bool]:
        """Read further lines, into `taken`, until all quotes are closed.

        Returns:
            The fields, or None for no valid record; and whether the first quote was closed.
        """
        closed_once, searched = False, len(text)
        while len(taken) < _MAX_RECORD_LINES:
            line = self._next_line()
            if line is None:
                return None, closed_once
            taken.append(line)
            if line[1] is None or len(text) + len(line[1]) > MAX_LINE_BYTES:
                return None, closed_once
            text += line[1]
            end = _closing_quote(text, searched)
            searched = len(text)
            if end is None:
                continue
            if not self._ends_field(text, end + 1):
                return None, closed_once
            closed_once = True
            more, next_unclosed = self._scan(text, unclosed)
            fields += more
            if next_unclosed is None:
                return fields, closed_once
            unclosed = next_unclosed
        return None, closed_once

    def _next_lines_are_rows(self, as_text: list[str]) -> bool:
        """Whether the line of an unclosed quote is a whole row without it, and so are the lines after it."""
        if self._columns is None or len(as_text) != self._columns:
            return False
        lines = [text for _, text in self._peek(self._lines_ahead) if text is not None]
        if len(lines) < self._lines_ahead or any(self._row_length(text) != self._columns for text in lines):
            return False
        # A comma does not separate columns only, so in CSV the lines may still be those of a quoted caption.
        return self._delimiter != "," or (self._columns > 1 and not any(map(self._closes, lines)))

    def _closes(self, text: str) -> bool:
        """Whether a line ends a quoted field that began before it."""
        end = _closing_quote(text, 0)
        return end is not None and self._ends_field(text, end + 1)

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

    def _peek(self, count: int) -> list[_Line]:
        while len(self._ahead) < count and (line := self._fetch()) is not None:
            self._ahead.append(line)
        return list(self._ahead)[:count]

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
