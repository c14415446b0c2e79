"""Metrics of zero-shot classification and retrieval, as fractions between 0 and 1, and means of them over tasks."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics.bootstrap import bootstrap_draws
from mode_ray.evaluate.metrics.curves import Floats
from mode_ray.evaluate.metrics.metric_table import METRICS
from mode_ray.evaluate.metrics.scored import Scored, check_scores


def measure(scored: Scored) -> dict[str, float]:
    """All metrics of the task's kind that its images define; the others are left out."""
    once_bi = np.ones((1, scored.images))
    return {
        name: float(metric.values(scored, once_bi)[0])
        for name, metric in METRICS[scored.kind].items()
        if metric.problem(scored) is None
    }


def classification_metrics(
    scores_il: npt.NDArray[np.floating], labels_i: npt.NDArray[np.integer], n_classes: int
) -> dict[str, float]:
    """Accuracy of class scores.

    Args:
        scores_il: One row an image, one column a class.
        labels_i: The right class of every image.
        n_classes: Number of classes; must be the number of columns.

    Returns:
        `top1`; `top5`, left out where there are at most 5 classes, since it would be 1 for any model;
        `mean_per_class`, the mean over the classes that occur of the share of their images that are right; and of two
        classes that both occur `roc_auc`, the second class being the positive one.

    Raises:
        DataError: Shapes do not fit, there are no images, a label is out of range or a score is not a number.
    """
    check_scores(scores_il, (len(labels_i), n_classes), "images and classes")
    return measure(Scored(kind="classification", scores_il=scores_il, labels=labels_i))


def retrieval_metrics(
    scores_ij: npt.NDArray[np.floating],
    image_of_text: npt.NDArray[np.integer],
    captions: Sequence[str] | None = None,
    *,
    text_to_image_scores_ij: npt.NDArray[np.floating] | None = None,
) -> dict[str, float]:
    """Recall in both directions: the share of queries with a right answer among the first 1, 5, 10.

    An image may have several texts: any of them is right. Equal captions are one text: it is right for every
    image that has it. An image without a text is searched but not asked.

    Args:
        scores_ij: One row an image, one column a text.
        image_of_text: The row of every text's image.
        captions: The texts, to find equal ones; by default all count as different.
        text_to_image_scores_ij: Scores for the direction text to image, where they differ because every query
            text has its own routing weights.

    Returns:
        `image_to_text_r1`, `_r5`, `_r10` and `text_to_image_r1`, `_r5`, `_r10`; r5 and r10 are left out where
        there are no more candidates than that.

    Raises:
        DataError: Shapes do not fit, there are no texts, a row is out of range or a score is not a number.
    """
    return measure(
        Scored(
            kind="retrieval",
            scores_il=scores_ij,
            labels=image_of_text,
            captions=captions,
            text_to_image_scores_il=text_to_image_scores_ij,
        )
    )


def metric_draws(scored: Scored, name: str, *, resamples: int = 1000, seed: int = 0) -> Floats:
    """A metric on resamples of the images, for an interval or for the difference of two models.

    Args:
        scored: The scores and what is right.
        name: Of the metric.
        resamples: Number of draws.
        seed: Of the draws.

    Returns:
        As `bootstrap.bootstrap_draws`.

    Raises:
        DataError: The metric cannot be measured on these images; says why.
    """
    metric = METRICS[scored.kind][name]
    problem = metric.problem(scored)
    if problem is not None:
        raise DataError(f"{name} {problem}")
    return bootstrap_draws(partial(metric.values, scored), scored.images, resamples=resamples, seed=seed)


def macro_mean(values: Mapping[str, float | None]) -> float | None:
    """The plain mean over tasks, or None where a task is missing: such means cannot be compared."""
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def group_means(
    values: Mapping[str, float | None], groups_of_task: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """The plain mean over the tasks of every named group, such as the variants that test robustness.

    Args:
        values: A metric by task; None where it was not measured.
        groups_of_task: Names of the groups that a task belongs to, by task.

    Returns:
        Means by group, in order of first mention; None where a task of the group is missing.
    """
    members: dict[str, list[str]] = {}
    for task, groups in groups_of_task.items():
        for group in groups:
            members.setdefault(group, []).append(task)
    return {group: macro_mean({task: values.get(task) for task in tasks}) for group, tasks in members.items()}


def difference_margin(pairs: Sequence[tuple[float, float, int]]) -> float:
    """95 % margin on the difference of two models' macro means that is due to the finite test sets.

    Binomial, and both models' errors taken as independent; both answer the same items, so the true margin is
    mostly smaller. It says nothing of the noise between training seeds.

    Args:
        pairs: For every task both models' fraction of right answers and the number of test items.
    """
    variance = sum((a * (1 - a) + b * (1 - b)) / max(1, items) for a, b, items in pairs)
    return 1.96 * math.sqrt(variance) / len(pairs)
