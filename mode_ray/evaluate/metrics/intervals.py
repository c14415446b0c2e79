"""Intervals of the scores in the report, of their means over tasks, and of the differences from the dense model.

All lines use the same resamples of a task, so the difference of two lines is a paired comparison. Every task has other
resamples, so the mean of the draws of the tasks is a draw of the mean.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from mode_ray.evaluate.metrics.bootstrap import percentile_interval
from mode_ray.evaluate.metrics.curves import Floats
from mode_ray.evaluate.metrics.score import metric_draws
from mode_ray.evaluate.metrics.scored import Scored
from mode_ray.evaluate.report.schema import DifferenceRow, IntervalRow

RESAMPLES = 1000


def task_draws(scored: Scored, task: str, metric: str) -> Floats:
    """Draws of the metric of a task, [RESAMPLES], seeded by the name of the task."""
    return metric_draws(scored, metric, resamples=RESAMPLES, seed=zlib.crc32(task.encode()))


def interval_rows(
    scores: Mapping[str, Mapping[str, float]], draws: Mapping[str, Mapping[str, Floats]], baseline: str | None
) -> list[IntervalRow]:
    """The intervals of every line, by task and last for the mean over tasks.

    Args:
        scores: Scores by line, then by task.
        draws: Draws by line, then by task, [RESAMPLES] each.
        baseline: The line to compare with, or None.
    """
    rows = []
    for line, by_task in draws.items():
        for task in (*by_task, None):
            low, high = percentile_interval(_draws(by_task, task))
            row = IntervalRow(model=line, task=task, score=_score(scores[line], task), low=low, high=high)
            if baseline is not None and line != baseline:
                low, high = percentile_interval(_draws(by_task, task) - _draws(draws[baseline], task))
                change = row["score"] - _score(scores[baseline], task)
                row["against_dense"] = DifferenceRow(change=change, low=low, high=high)
            rows.append(row)
    return rows


def mean_row(rows: Sequence[IntervalRow], model: str) -> IntervalRow | None:
    """The interval of a line for the mean over tasks, if there is one."""
    return next((row for row in rows if row["model"] == model and row["task"] is None), None)


def _draws(by_task: Mapping[str, Floats], task: str | None) -> Floats:
    if task is not None:
        return by_task[task]
    mean_b: Floats = np.mean(list(by_task.values()), axis=0)
    return mean_b


def _score(by_task: Mapping[str, float], task: str | None) -> float:
    return sum(by_task.values()) / len(by_task) if task is None else by_task[task]
