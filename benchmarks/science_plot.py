"""The picture of the science benchmark: every model's mean of all tasks, and where MoDE-4 gains and loses."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Scores = Mapping[str, float]
TaskScores = Mapping[str, Mapping[str, Mapping[str, float]]]  # by run, model and task

# Run and line of its scores, by the title in the picture; models of equal total samples stand together.
_LINES: Mapping[str, tuple[str, str]] = {
    "dense": ("mode4", "dense"),
    "MoDE-2": ("mode2", "mode (calibrated)"),
    "MoDE-4": ("mode4", "mode (calibrated)"),
    "MoDE-8": ("mode8", "mode (calibrated)"),
    "MoDE-4, uniform": ("mode4", "mode (uniform)"),
    "Full-4, uniform": ("mode4", "full"),
    "Random-4, uniform": ("mode4", "random"),
    "best single expert": ("mode4", "best_expert"),
    "oracle": ("mode4", "oracle"),
    "dense, equal total": ("mode4-full", "dense_equal_total"),
    "MoDE-4, full budget": ("mode4-full", "mode (calibrated)"),
}
_SHARED_BUDGET = 9  # so many of them, from above
_DOT, _MEAN = "#3b6ea5", "#c0392b"


def write_science_picture(
    file: Path, by_seed: Sequence[Mapping[str, Scores]], tasks_by_seed: Sequence[TaskScores]
) -> None:
    """Draw one dot a seed and a stroke at the mean.

    Args:
        file: The PNG to write.
        by_seed: For every seed, the macro means in points by run and line.
        tasks_by_seed: For every seed, the main metrics in points by run, model and task.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    means = {title: [scores[run][line] for scores in by_seed] for title, (run, line) in _LINES.items()}
    _draw(left, means)
    left.axhline(_SHARED_BUDGET - 0.5, color="#999999", linewidth=0.8)
    left.set_xlabel("mean of all tasks, points")
    left.set_title("above the line: as many samples as the dense model in all", fontsize="medium")
    names = tasks_by_seed[0]["mode4"]["dense"]
    gains = {
        name: [tasks["mode4"]["MoDE-4 (calibrated)"][name] - tasks["mode4"]["dense"][name] for tasks in tasks_by_seed]
        for name in names
    }
    _draw(right, gains)
    right.axvline(0, color="#999999", linewidth=0.8)
    right.set_xlabel("points")
    right.set_title("MoDE-4 minus dense, by task", fontsize="medium")
    figure.savefig(file, dpi=110, metadata={"Software": None})


def _draw(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    for place, several in enumerate(values.values()):
        axes.plot(several, [place] * len(several), "o", color=_DOT, markersize=4, alpha=0.7)
        axes.plot(statistics.fmean(several), place, "|", color=_MEAN, markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(values)), labels=list(values))
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.4)
