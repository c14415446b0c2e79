"""What a study found: for every line of the points' reports its mean over the tasks, by point and seed."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mode_ray.evaluate.report.render import result_rows
from mode_ray.evaluate.report.schema import ModelRow, ReportData
from mode_ray.storage import Location

RESULTS_FILE = "study.json"
_TITLES = {
    "dense": "dense",
    "dense_equal_total": "dense, equal total",
    "best_expert": "best single expert",
    "oracle": "oracle: best expert per task",
    "full": "Full-n",
    "random": "Random-n",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One line of one point's report.

    Attributes:
        label: Of the point.
        seed: Its training seed.
        line: What was measured, named alike for every n.
        mean: Macro mean of the main metric over the tasks, as a fraction; None where one is missing.
        samples: All samples behind it.
    """

    label: str
    seed: int
    line: str
    mean: float | None
    samples: int | None


@dataclass(frozen=True, kw_only=True)
class LinePoint:
    """One point of a line, over the seeds.

    Attributes:
        label: Of the point.
        mean: Over seeds.
        deviation: Standard deviation over seeds (ddof 1); None with one seed.
        samples: Mean over seeds; None where it is not known.
    """

    label: str
    mean: float
    deviation: float | None
    samples: float | None


def measured_lines(label: str, seed: int, report: ReportData) -> list[Measured]:
    """The lines of a report that can be compared over points; experts alone are not among them."""
    return [
        Measured(label=label, seed=seed, line=title, mean=row.mean, samples=row.model.get("samples_total"))
        for row in result_rows(report)
        if (title := _title(row.model)) is not None
    ]


def lines(measured: Sequence[Measured], labels: Sequence[str]) -> dict[str, list[LinePoint]]:
    """Means over seeds by line, in the order of the labels; points that are not measured yet are left out."""
    titles = dict.fromkeys(one.line for one in measured)
    found: dict[str, list[LinePoint]] = {title: [] for title in titles}
    for title in titles:
        for label in labels:
            own = [one for one in measured if one.line == title and one.label == label and one.mean is not None]
            if own:
                means = [one.mean for one in own if one.mean is not None]
                samples = [one.samples for one in own if one.samples is not None]
                found[title].append(
                    LinePoint(
                        label=label,
                        mean=statistics.fmean(means),
                        deviation=statistics.stdev(means) if len(means) > 1 else None,
                        samples=statistics.fmean(samples) if samples else None,
                    )
                )
    return {title: points for title, points in found.items() if points}


def write_results(folder: Location, about: Mapping[str, object], measured: Sequence[Measured]) -> None:
    """Write `study.json`."""
    content = {**about, "measured": [asdict(one) for one in measured]}
    (folder / RESULTS_FILE).write_text(json.dumps(content, indent=1))


def _title(model: ModelRow) -> str | None:
    if model["kind"] == "mode":
        return f"MoDE-n ({model.get('rule')})"
    return _TITLES.get(model["kind"])
