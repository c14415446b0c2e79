"""Tables for the terminal that lose nothing where it is narrow: the columns that do not fit continue below."""

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

_GAP = 2


class WideTable:
    """A table whose first column names the rows; the other columns are numbers or short words.

    The columns that do not fit in the width follow in further blocks, each with the first column again.

    Args:
        title: Printed above; not read as markup.
        headings: Of all columns; a heading may have several lines.
        words: How many of the first columns are words, which begin at the left; numbers end at the right.
        caption: Printed below.
    """

    def __init__(self, title: str, *headings: str, words: int = 1, caption: str = "") -> None:
        self.rows: list[list[Text]] = []
        self._title = title
        self._headings = [Text(heading) for heading in headings]
        self._words = words
        self._caption = caption
        self._sections: set[int] = set()

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Add a row: a cell for each column; strings are not read as markup."""
        self.rows.append([Text(cell) if isinstance(cell, str) else cell for cell in cells])
        for cell in self.rows[-1]:
            cell.stylize_before(style)

    def add_section(self) -> None:
        """Draw a line below the last row."""
        self._sections.add(len(self.rows) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What rich prints: title, blocks and caption."""
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
        first, *others = (
            max(line.cell_len for cell in (heading, *cells) for line in cell.split(allow_blank=True))
            for heading, cells in zip(
                self._headings, zip(*self.rows, strict=True) if self.rows else [()] * len(self._headings), strict=True
            )
        )
        blocks, left = [[0]], width - first
        for column, size in enumerate(others, start=1):
            if size + _GAP > left and len(blocks[-1]) > 1:
                blocks.append([0])
                left = width - first
            blocks[-1].append(column)
            left -= size + _GAP
        return blocks


def short_count(number: float) -> str:
    """A count in full, or with three digits from a million: 1,500 and 12.8 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"
