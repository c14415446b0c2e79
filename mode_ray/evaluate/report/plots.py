"""The pictures of the report: figures as inline SVG, and thumbnails as data URIs.

The SVG is deterministic and has no dates. Its colours are CSS variables of the page, so it follows dark mode.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mode_ray.evaluate.report.pruning import PruningStep
from mode_ray.evaluate.report.schema import DifferenceRow

EXPERT_COLORS = 10
MAX_THUMBNAIL_BYTES = 1_200_000
MAX_CURVE_POINTS = 300

_INK, _RULE, _ACCENT = "#010203", "#040506", "#070809"
_EXPERT_STAND_INS = tuple(f"#0a0b{index:02x}" for index in range(EXPERT_COLORS))
_VARIABLES = {_INK: "var(--muted)", _RULE: "var(--rule)", _ACCENT: "var(--accent)"} | {
    color: f"var(--expert-{index})" for index, color in enumerate(_EXPERT_STAND_INS)
}
_IMAGE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mode_ray",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _RULE,
    "grid.linewidth": 0.7,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Curve:
    """A training loss over the number of samples.

    Attributes:
        samples: Samples at every point, counted from the start of the whole schedule.
        loss: The loss; None and values that are not finite are left out.
        expert: The expert, for the colour; None for the seed and the dense model.
        dashed: Whether the line is dashed.
    """

    samples: Sequence[float]
    loss: Sequence[float | None]
    expert: int | None = None
    dashed: bool = False


def loss_figure(curves: Sequence[Curve]) -> str:
    """Loss curves as an SVG element. The page has the legend."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(11.0, 3.6)
        for curve in curves:
            samples, loss = _thinned(curve)
            color = _INK if curve.expert is None else _EXPERT_STAND_INS[curve.expert % EXPERT_COLORS]
            style = (0, (5, 2)) if curve.dashed else "solid"
            axes.plot(samples, loss, color=color, linewidth=1.6, linestyle=style, solid_capstyle="round")
        axes.set_xlabel("samples seen")
        axes.set_ylabel("contrastive loss")
        axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.01)
        return _svg(figure, "loss", "Training loss over samples seen")


def pruning_figure(steps: Sequence[PruningStep]) -> str:
    """Mean score over the number of experts as an SVG element: solid for top k, dashed for shares of the weight."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(11.0, 3.0)
        for keep, color, style in (("top", _ACCENT, "solid"), ("share", _INK, (0, (5, 2)))):
            points = sorted((step.experts_run, step.score * 100) for step in steps if step.keep == keep)
            axes.plot(
                [run for run, _ in points],
                [score for _, score in points],
                color=color,
                linewidth=1.6,
                linestyle=style,
                marker="o",
                markersize=4,
            )
        axes.set_xlabel("experts run, mean over tasks")
        axes.set_ylabel("mean over tasks, per cent")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.set_xlim(left=0.0)
        axes.grid(visible=False, axis="x")
        return _svg(figure, "pruning", "Mean score over experts run")


def difference_figure(differences: Mapping[str, DifferenceRow]) -> str:
    """Differences from the dense model with intervals, one per row; the last is the mean."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(11.0, 0.9 + 0.3 * len(differences))
        axes.axvline(0.0, color=_INK, linewidth=1.0)
        for place, row in enumerate(differences.values()):
            color, last = (_ACCENT, True) if place == len(differences) - 1 else (_INK, False)
            axes.plot(
                [row["low"] * 100, row["high"] * 100], [place, place], color=color, linewidth=2.4 if last else 1.4
            )
            axes.plot([row["change"] * 100], [place], color=color, marker="o", markersize=6 if last else 4.5)
        axes.set_yticks(range(len(differences)), list(differences))
        axes.set_ylim(len(differences) - 0.4, -0.6)
        axes.set_xlabel("points above the dense model, with 95 % intervals")
        axes.grid(visible=False, axis="y")
        return _svg(figure, "differences", "Differences from the dense model with intervals")


def size_histogram(sizes: Sequence[int]) -> str:
    """Histogram of the sizes of the fine clusters, with a line at the mean, as an SVG element."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(11.0, 2.6)
        bins = int(np.clip(np.sqrt(len(sizes)) * 2, 8, 40))
        axes.hist(np.asarray(sizes, dtype=float), bins=bins, color=_ACCENT, rwidth=0.92)
        mean = float(np.mean(sizes))
        axes.axvline(mean, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.margins(y=0.18)
        axes.annotate(
            f"mean {mean:,.0f}",
            (mean, 1.0),
            (4, -1),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            va="top",
        )
        axes.set_xlabel("captions in the cluster")
        axes.set_ylabel("fine clusters")
        axes.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="x")
        return _svg(figure, "sizes", "Histogram of fine cluster sizes")


def thumbnail_uris(thumbnails: Mapping[int, Sequence[bytes]]) -> dict[int, list[str]]:
    """PNG and JPEG files as data URIs, by expert. Other files and files over the size limit are left out."""
    share = MAX_THUMBNAIL_BYTES // max(1, len(thumbnails))
    uris: dict[int, list[str]] = {}
    for expert, files in thumbnails.items():
        kept: list[str] = []
        for file in files:
            kind = next((kind for magic, kind in _IMAGE_TYPES.items() if file.startswith(magic)), None)
            uri = f"data:{kind};base64,{base64.b64encode(file).decode()}"
            if kind is not None and sum(map(len, kept)) + len(uri) <= share:
                kept.append(uri)
        uris[expert] = kept
    return uris


def _canvas(width_inches: float, height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_CURVE_POINTS points, which are means of equal intervals to reduce the noise."""
    points = np.array([curve.samples, curve.loss], dtype=float)
    points = points[:, np.isfinite(points).all(axis=0)]
    if points.shape[1] > MAX_CURVE_POINTS:
        runs = np.array_split(points, MAX_CURVE_POINTS, axis=1)
        points = np.stack([run.mean(axis=1) for run in runs], axis=1)
    return points[0], points[1]


def _svg(figure: Figure, name: str, label: str) -> str:
    """The <svg> element of a figure, with ids that are unique on the page and colours of the page."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
