"""The picture of a study, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mode_ray.study.results import LinePoint

LineStyle: TypeAlias = str | tuple[int, tuple[int, ...]]

_LOGARITHMIC_FROM = 8.0  # the largest place over the smallest
_MARKERS = "osD^vP*X<>"
_DASHES: Sequence[LineStyle] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)))
_INCHES = (7.5, 4.5)
_DOTS_PER_INCH = 140


def numbers_of(labels: Sequence[str]) -> list[float] | None:
    """The labels as numbers, or None where one of them is not a number."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return None


def study_png(
    lines: Mapping[str, Sequence[LinePoint]],
    labels: Sequence[str],
    axis: str,
    against: Literal["value", "samples"],
) -> bytes:
    """The picture of `study_figure`."""
    return png_of(study_figure(lines, labels, axis, against))


def png_of(figure: Figure) -> bytes:
    """A figure as PNG, the same bytes each time."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return sink.getvalue()


def study_figure(
    lines: Mapping[str, Sequence[LinePoint]],
    labels: Sequence[str],
    axis: str,
    against: Literal["value", "samples"],
) -> Figure:
    """Draw all lines, with bars of one standard deviation over the seeds.

    Each line has a marker of its own, and is thinner than the lines below it, so that equal lines are all visible.

    Args:
        lines: By name.
        labels: Of all points, in order. Numbers are drawn to scale, names side by side.
        axis: The name of the horizontal axis.
        against: What the horizontal axis shows: the labels, or the samples behind each result.
    """
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=[colormaps["tab20"](number) for number in range(20)])
    numbers = numbers_of(labels)
    named = (
        against == "value" and numbers is None
    )  # names have no values between them, so there are no connecting lines
    ticks = dict(zip(labels, numbers or range(len(labels)), strict=True))
    all_places: list[float] = []
    for number, (name, points) in enumerate(lines.items()):
        drawn = [(ticks[point.label] if against == "value" else point.samples, point) for point in points]
        shift = 0.7 * ((number + 0.5) / len(lines) - 0.5) if named else 0.0
        placed = [(place + shift, point) for place, point in drawn if place is not None]
        all_places += [place for place, _ in placed]
        bars = [100 * (point.deviation or 0.0) for _, point in placed]
        axes.errorbar(
            [place for place, _ in placed],
            [100 * point.mean for _, point in placed],
            yerr=bars if any(bars) else None,
            label=name,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=max(4.0, 9.0 - number),
            capsize=3,
            linewidth=max(0.8, 3.4 - 0.4 * number),
            linestyle="none" if named else _DASHES[number % len(_DASHES)],
        )
    if named:
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    elif all_places and min(all_places) > 0 and max(all_places) >= _LOGARITHMIC_FROM * min(all_places):
        axes.set_xscale("log", base=2)
    if against == "value" and numbers is not None:
        axes.set_xticks(numbers, labels)  # the studied values only: there is nothing between two and four experts
        axes.set_xticks([], minor=True)
    axes.set_xlabel(axis if against == "value" else "training samples, all models behind a result together")
    axes.set_ylabel("mean over tasks (%)")
    axes.grid(visible=True, linewidth=0.4)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure
