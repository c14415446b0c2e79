"""The results of a study: for every line of its runs' reports the mean over tasks, and how far MoDE is ahead of it.

Differences are taken within one report, so they are paired by seed.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mode_ray.evaluate.report.render import result_rows
from mode_ray.evaluate.report.schema import ModelRow, ReportData

_TITLES = {
    "dense": "dense",
    "dense_equal_total": "dense, equal total",
    "wide": "dense, as wide as all experts",
    "clustered": "dense, batches of one cluster",
    "best_expert": "best single expert",
    "oracle": "oracle: best expert per task",
    "full": "Full-n",
    "random": "Random-n",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One line of one run's report, or a difference of two of them.

    Attributes:
        label: The label of the run's point.
        seed: The run's training seed.
        line: The name of the line, the same for every n.
        mean: Macro mean of the main metric over the tasks, as a fraction; None where a task is missing.
        samples: All samples behind it; None for a difference.
        tasks: The main metric by task, as a fraction; tasks that were not measured are left out.
    """

    label: str
    seed: int
    line: str
    mean: float | None
    samples: int | None
    tasks: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LinePoint:
    """One point of a line, over the seeds.

    Attributes:
        label: The label of the point.
        mean: Mean over seeds.
        deviation: Standard deviation over seeds (ddof 1); None with one seed.
        samples: Mean over seeds; None where it is not known.
    """

    label: str
    mean: float
    deviation: float | None
    samples: float | None


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """What the runs of a study have measured so far.

    Attributes:
        tasks: The names of the tasks.
        measured: The lines of all reports. The lines of a single expert are left out.
        differences: MoDE under the rule of the run's config minus each other line of the same report.
    """

    tasks: Sequence[str] = ()
    measured: Sequence[Measured] = ()
    differences: Sequence[Measured] = ()

    def with_report(self, label: str, seed: int, report: ReportData) -> "StudyResults":
        """These results and those of one more run."""
        names = [task["name"] for task in report["tasks"]]
        found = [
            Measured(
                label=label,
                seed=seed,
                line=title,
                mean=row.mean,
                samples=row.model.get("samples_total"),
                tasks={name: score for name, score in zip(names, row.scores, strict=True) if score is not None},
            )
            for row in result_rows(report)
            if (title := _title(row.model)) is not None
        ]
        chosen = [one for one in found if one.line == _mode_title(report["rule"])]
        ahead = [_minus(mode, one) for mode in chosen for one in found if one is not mode]
        return StudyResults(tasks=names, measured=[*self.measured, *found], differences=[*self.differences, *ahead])

    def task_differences(self, line: str) -> list[Measured]:
        """MoDE minus one line on each task; the field `line` then has the name of the task."""
        return [
            replace(one, line=task, mean=score, tasks={})
            for one in self.differences
            if one.line == line
            for task, score in one.tasks.items()
        ]


def lines(measured: Sequence[Measured], labels: Sequence[str]) -> dict[str, list[LinePoint]]:
    """Means over seeds by line, in the order of the labels; points that are not measured yet are left out."""
    found: dict[str, list[LinePoint]] = {}
    for line in dict.fromkeys(one.line for one in measured):
        for label in labels:
            own = [one for one in measured if one.line == line and one.label == label]
            means = [one.mean for one in own if one.mean is not None]
            samples = [one.samples for one in own if one.samples is not None]
            if means:
                point = LinePoint(
                    label=label,
                    mean=statistics.fmean(means),
                    deviation=statistics.stdev(means) if len(means) > 1 else None,
                    samples=statistics.fmean(samples) if samples else None,
                )
                found.setdefault(line, []).append(point)
    return found


def _minus(mode: Measured, other: Measured) -> Measured:
    mean = None if mode.mean is None or other.mean is None else mode.mean - other.mean
    tasks = {name: mode.tasks[name] - score for name, score in other.tasks.items() if name in mode.tasks}
    return replace(other, mean=mean, samples=None, tasks=tasks)


def _mode_title(rule: object) -> str:
    return f"MoDE-n ({rule})"


def _title(model: ModelRow) -> str | None:
    return _mode_title(model.get("rule")) if model["kind"] == "mode" else _TITLES.get(model["kind"])
