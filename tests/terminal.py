"""What a terminal of 80 columns shows."""

import io

from rich.console import Console, RenderableType


def shown_at_80_columns(renderable: RenderableType) -> str:
    """What is printed, without a line that is longer."""
    output = io.StringIO()
    Console(file=output, width=80).print(renderable)
    shown = output.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown, "a cell was cut"
    return shown


def require_words(shown: str, words: list[str]) -> None:
    """Make sure that all of these are there, each on one line."""
    missing = [word for word in words if not any(word in line for line in shown.splitlines())]
    assert not missing, f"{missing} not in\n{shown}"
