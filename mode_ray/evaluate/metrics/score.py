"""Metrics of zero-shot classification and retrieval, as fractions between 0 and 1, and means of them over tasks."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics.bootstrap import bootstrap_draws
from mode_ray.evaluate.metrics.curves import Floats
from mode_ray.evaluate.metrics.metric_table import METRICS
from mode_ray.evaluate.metrics.scored import Scored


def measure(scored: Scored) -> dict[str, float]:
    """All metrics of the kind of task that are defined on its images."""
    once_bi = np.ones((1, scored.images))
    return {
        name: float(metric.values(scored, once_bi)[0])
        for name, metric in METRICS[scored.kind].items()
        if metric.problem(scored) is None
    }


def metric_draws(scored: Scored, name: str, *, resamples: int = 1000, seed: int = 0) -> Floats:
    """Draws of a metric on resamples of the images, float64 [resamples]; see `bootstrap_draws`.

    Raises:
        DataError: The metric is not defined on these images; the message says why.
    """
    metric = METRICS[scored.kind][name]
    problem = metric.problem(scored)
    if problem is not None:
        raise DataError(f"{name} {problem}")
    return bootstrap_draws(partial(metric.values, scored), scored.images, resamples=resamples, seed=seed)


def macro_mean(values: Mapping[str, float | None]) -> float | None:
    """The plain mean over tasks, or None if a task is missing, because such means cannot be compared."""
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def group_means(
    values: Mapping[str, float | None], groups_of_task: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """The plain mean over the tasks of every named group, such as the robustness variants of a data set.

    Args:
        values: A metric by task; None if it was not measured.
        groups_of_task: Names of the groups of each task.

    Returns:
        Means by group, in order of first mention; None if a task of the group is missing.
    """
    members: dict[str, list[str]] = {}
    for task, groups in groups_of_task.items():
        for group in groups:
            members.setdefault(group, []).append(task)
    return {group: macro_mean({task: values.get(task) for task in tasks}) for group, tasks in members.items()}


def difference_margin(pairs: Sequence[tuple[float, float, int]]) -> float:
    """95 % margin on the difference of the macro means of two models that is due to the finite test sets.

    It is binomial and assumes independent errors. Both models answer the same items, so the true margin is usually
    smaller. The noise between training seeds is not part of it.

    Args:
        pairs: For every task, the fractions of right answers of both models and the number of test items.
    """
    variance = sum((a * (1 - a) + b * (1 - b)) / max(1, items) for a, b, items in pairs)
    return 1.96 * math.sqrt(variance) / len(pairs)
