"""Tables in a narrow terminal: what does not fit continues below, and nothing is cut."""

import io

from rich.console import Console, RenderableType

from mode_ray.util.tables import WideTable, duration, short_count


def lines(renderable: RenderableType, width: int) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width).print(renderable)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def table() -> WideTable:
    made = WideTable("[draft] run", "stage", "state", "rows", words=2, caption="a [red] caption")
    made.add_row("embed", "done", "1,500")
    made.add_row("[0]", "started", "7", style="dim")
    return made


def test_where_it_fits_it_is_one_block() -> None:
    assert lines(table(), 40) == [
        "[draft] run",
        "stage  state     rows",
        "─────────────────────",
        "embed  done     1,500",
        "[0]    started      7",
        "a [red] caption",
    ]


def test_where_it_does_not_the_first_column_names_the_rows_of_each_block() -> None:
    assert lines(table(), 15) == [
        "[draft] run",
        "stage  state",
        "──────────────",
        "embed  done",
        "[0]    started",
        "",
        "stage   rows",
        "────────────",
        "embed  1,500",
        "[0]        7",
        "a [red] caption",
    ]


def test_a_column_without_content_is_left_out() -> None:
    made = WideTable("", "run", "speed", "loss", "vs dense")
    made.add_row("n4/00", "", "1.5", "\N{EN DASH}")
    made.add_row("n4/01", "", "0", "")
    assert [line.split() for line in lines(made, 40)] == [
        ["run", "loss"],
        ["─" * 11],
        ["n4/00", "1.5"],
        ["n4/01", "0"],
    ]


def test_names_are_never_shortened() -> None:
    made = WideTable("", "run", "state", words=2)
    for number in range(4):
        made.add_row(f"n4/{number:02d}-of-a-long-name", "finished")
    shown = lines(made, 30)
    assert "…" not in "".join(shown)
    assert sum("of-a-long-name" in line for line in shown) == 4


def test_without_rows_the_headings_are_shown() -> None:
    assert lines(WideTable("", "stage", "state"), 40)[0] == "stage  state"


def test_counts_are_exact_below_a_million() -> None:
    assert [short_count(number) for number in (0, 1500, 999_999, 12_800_000, 2.5e9)] == [
        "0",
        "1,500",
        "999,999",
        "12.8 M",
        "2.5 B",
    ]


def test_durations_in_fitting_units() -> None:
    assert [duration(seconds) for seconds in (-1, 30, 1800, 36_000)] == ["0 s", "30 s", "30 min", "10.0 h"]
