"""The picture of a study, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mode_ray.study.results import LinePoint

_MUCH = 8.0
_INCHES = (7.5, 4.5)
_DOTS_PER_INCH = 140


def numbers_of(labels: Sequence[str]) -> list[float] | None:
    """The labels as numbers, or None where one is none."""
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
    """Draw all lines, with bars of one standard deviation over the seeds.

    Args:
        lines: By name.
        labels: Of all points, in order. Numbers are drawn to scale, a logarithmic one where they span much.
        axis: What the labels are.
        against: What is drawn to the right: the labels, or the samples behind each result.
    """
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    numbers = numbers_of(labels)
    if against == "value":
        place = dict(zip(labels, numbers or range(len(labels)), strict=True))
    all_places: list[float] = []
    for name, points in lines.items():
        drawn = [point for point in points if against == "value" or point.samples is not None]
        if against == "value":
            places = [float(place[point.label]) for point in drawn]
        else:
            places = [float(point.samples or 0.0) for point in drawn]
        all_places += places
        bars = [100 * (point.deviation or 0.0) for point in drawn]
        chosen = name.startswith("MoDE")
        axes.errorbar(
            places,
            [100 * point.mean for point in drawn],
            yerr=bars if any(bars) else None,
            label=name,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=2.0 if chosen else 1.2,
            linestyle="-" if chosen else "--",
        )
    if against == "value" and numbers is None:
        axes.set_xticks(range(len(labels)), labels)
    elif all_places and min(all_places) > 0 and max(all_places) >= _MUCH * min(all_places):
        axes.set_xscale("log", base=2)
        if against == "value" and numbers is not None:
            axes.set_xticks(numbers, labels)
    axes.set_xlabel(axis if against == "value" else "training samples, all models behind a result together")
    axes.set_ylabel("mean over tasks (%)")
    axes.grid(visible=True, linewidth=0.4)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return sink.getvalue()
