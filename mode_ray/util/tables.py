"""Tables for narrow terminals, in which the columns that do not fit continue below, and short forms of figures."""

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

_GAP = 2
_NOTHING = ("", "\N{EN DASH}")


class WideTable:
    """A table whose first column names the rows; the other columns are numbers or short words.

    Columns that do not fit in the width follow in more blocks, which repeat the first column. No cell is shortened.
    Columns without any content are left out.

    Args:
        title: Printed above the table, without markup.
        headings: Headings of all columns, of one or several lines.
        words: Number of first columns with words, which are aligned left. Other columns are aligned right.
        caption: Printed below the table.
    """

    def __init__(self, title: str, *headings: str, words: int = 1, caption: str = "") -> None:
        self.rows: list[list[Text]] = []
        self._title = title
        self._headings = [Text(heading) for heading in headings]
        self._words = words
        self._caption = caption
        self._sections: set[int] = set()

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Add a row with one cell per column. Strings have no markup."""
        self.rows.append([Text(cell) if isinstance(cell, str) else cell for cell in cells])
        for cell in self.rows[-1]:
            cell.stylize_before(style)

    def add_section(self) -> None:
        """Draw a line below the last row."""
        self._sections.add(len(self.rows) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Render title, blocks and caption."""
        if self._title:
            yield Text(self._title, style="bold")
        for number, columns in enumerate(self._blocks(options.max_width)):
            if number:
                yield Text()
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
            for column in columns:
                table.add_column(self._headings[column], justify="left" if column < self._words else "right")
            for place, row in enumerate(self.rows):
                table.add_row(*(row[column] for column in columns), end_section=place in self._sections)
            yield table
        if self._caption:
            yield Text(self._caption)

    def _blocks(self, width: int) -> list[list[int]]:
        by_column = list(zip(*self.rows, strict=True)) if self.rows else [()] * len(self._headings)
        first, *others = (
            max(line.cell_len for cell in (heading, *cells) for line in cell.split(allow_blank=True))
            for heading, cells in zip(self._headings, by_column, strict=True)
        )
        blocks, left = [[0]], width - first
        for column, size in enumerate(others, start=1):
            if self.rows and all(cell.plain in _NOTHING for cell in by_column[column]):
                continue
            if size + _GAP > left and len(blocks[-1]) > 1:
                blocks.append([0])
                left = width - first
            blocks[-1].append(column)
            left -= size + _GAP
        return blocks


def short_count(number: float) -> str:
    """A count, with three digits from a million on: 1,500 and 12.8 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
