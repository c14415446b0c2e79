"""The metrics of every kind of task by name, with their requirements and chance levels.

A metric is a function of image counts. Counts of 1 give the metric itself. The counts of a sample with replacement
give one draw of the bootstrap (`bootstrap`), so both use one formula.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported at their first use: the driver does without them

from mode_ray.evaluate.metrics.curves import Floats, average_precision, ratio, roc_auc
from mode_ray.evaluate.metrics.scored import Scored, TaskKind

RECALL_RANKS = (1, 5, 10)
Direction = Literal["image_to_text", "text_to_image"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        values: Computes the metric of every row, float64 [b], from the scores and the image counts [b, i]; NaN
            where it is not defined.
        chance: The expected metric of random scores.
        undefined: Why it cannot be measured, or None.
        least_classes: Smallest number of classes for which it is meaningful.
        most_classes: Largest number of classes for which it is defined.
    """

    values: Callable[[Scored, Floats], Floats]
    chance: Callable[[Scored], float]
    undefined: Callable[[Scored], str | None] = lambda _: None
    least_classes: int = 0
    most_classes: int | None = None

    def class_count_problem(self, classes: int) -> str | None:
        """Why it cannot be used for a task with this number of classes, or None."""
        if classes < self.least_classes:
            return f"needs at least {self.least_classes} classes; this task has {classes}"
        if self.most_classes is not None and classes > self.most_classes:
            return f"is defined for {self.most_classes} classes; this task has {classes}"
        return None

    def problem(self, scored: Scored) -> str | None:
        """Why it cannot be measured on these images, or None."""
        count = None if scored.kind == "retrieval" else self.class_count_problem(scored.texts)
        return count or self.undefined(scored)


def _top(rank: int, scored: Scored, weights_bi: Floats) -> Floats:
    return _share(scored.class_ranks_i < rank, weights_bi)


def _mean_per_class(scored: Scored, weights_bi: Floats) -> Floats:
    rows, right_i = np.arange(scored.images), scored.class_ranks_i == 0
    class_ic = scipy.sparse.csr_array((np.ones(scored.images), (rows, scored.labels)), shape=scored.scores_il.shape)
    images_bc = np.asarray(weights_bi @ class_ic)
    right_bc = np.asarray((weights_bi * right_i) @ class_ic)
    recall_bc = right_bc / np.maximum(images_bc, 1e-300)
    return ratio(recall_bc.sum(axis=1), (images_bc > 0).sum(axis=1).astype(np.float64))


def _two_class_auc(scored: Scored, weights_bi: Floats) -> Floats:
    # This has the same order as the softmax probability of the second class, for any logit scale.
    scores_il = scored.scores_il.astype(np.float64)
    margin_i = scores_il[:, 1] - scores_il[:, 0]
    return roc_auc(margin_i, scored.labels == 1, weights_bi)


def _mean_over_classes(
    area: Callable[[npt.NDArray[np.floating], npt.NDArray[np.bool_], Floats], Floats],
    scored: Scored,
    weights_bi: Floats,
) -> Floats:
    """Mean over the classes for which the area is defined."""
    classes = np.flatnonzero(scored.labels.any(axis=0))
    areas_cb = np.stack([area(scored.scores_il[:, c], scored.labels[:, c].astype(bool), weights_bi) for c in classes])
    defined_cb = np.isfinite(areas_cb)
    return ratio(np.where(defined_cb, areas_cb, 0.0).sum(axis=0), defined_cb.sum(axis=0).astype(np.float64))


def _mean_average_precision(scored: Scored, weights_bi: Floats) -> Floats:
    """Mean over all classes. A class without images counts as 0, as in clip-benchmark, so that results are comparable.

    A class that only a resample lacks is left out of its mean, because a 0 would bias the interval.
    """
    return _mean_over_classes(average_precision, scored, weights_bi) * _share_of_classes_present(scored)


def _share_of_classes_present(scored: Scored) -> float:
    return float(scored.labels.any(axis=0).mean())


def _image_to_text(rank: int, scored: Scored, weights_bi: Floats) -> Floats:
    asked = np.unique(scored.labels)
    return _share(scored.text_ranks_i[asked] < rank, weights_bi[:, asked])


def _text_to_image(rank: int, scored: Scored, weights_bi: Floats) -> Floats:
    # A caption has the count of its image, because the captions of one image are not independent samples.
    return _share(scored.image_ranks_l < rank, weights_bi[:, scored.labels])


def _share(hit_q: npt.NDArray[np.bool_], weights_bq: Floats) -> Floats:
    return ratio(weights_bq @ hit_q.astype(np.float64), weights_bq.sum(axis=1))


def _hit_chance(rank: int, direction: Direction, scored: Scored) -> float:
    """Probability that at least one right answer of a query is among `rank` random ones."""
    from scipy.stats import hypergeom  # slow to import, and needed only for the report

    axis, answers = (1, scored.texts) if direction == "image_to_text" else (0, scored.images)
    right_q = np.asarray(scored.right_il.sum(axis=axis)).ravel()
    return float(np.mean(hypergeom.sf(0, answers, right_q[right_q > 0], min(rank, answers))))


def _one_class_only(scored: Scored) -> str | None:
    present = np.unique(scored.labels)
    return None if len(present) > 1 else f"needs images of both classes; all images are of class {present[0]}"


def _no_positive(scored: Scored) -> str | None:
    return None if scored.labels.any() else "needs an image with one of the classes; there is none"


def _no_contrast(scored: Scored) -> str | None:
    some_c, all_c = scored.labels.any(axis=0), scored.labels.all(axis=0)
    return None if (some_c & ~all_c).any() else "needs a class that some images have and others do not have"


def _too_few(rank: int, candidates: Literal["images", "texts"], scored: Scored) -> str | None:
    count = int(getattr(scored, candidates))
    return f"needs more than {rank} {candidates}; there are {count}" if 1 < rank >= count else None


def _recall(rank: int, direction: Direction) -> Metric:
    forward = direction == "image_to_text"
    return Metric(
        values=partial(_image_to_text if forward else _text_to_image, rank),
        chance=partial(_hit_chance, rank, direction),
        undefined=partial(_too_few, rank, "texts" if forward else "images"),
    )


def _random_precision(scored: Scored) -> float:
    """Expected average precision of a random order, by linearity over ranks: n images, r of them positive.

    A rank has a positive image with probability r/n, and then (k - 1)(r - 1)/(n - 1) are expected before rank k. So
    the expectation is (H_n + (n - H_n)(r - 1)/(n - 1)) / n, with the harmonic number H_n.
    """
    images = scored.images
    positive_c = scored.labels.sum(axis=0)
    harmonic = float((1 / np.arange(1, images + 1)).sum())
    above_c = (images - harmonic) * (positive_c[positive_c > 0] - 1) / max(1, images - 1)
    return float(((harmonic + above_c) / images).mean()) * _share_of_classes_present(scored)


METRICS: Mapping[TaskKind, Mapping[str, Metric]] = {
    "classification": {
        "top1": Metric(values=partial(_top, 1), chance=lambda scored: 1 / scored.texts),
        "top5": Metric(values=partial(_top, 5), chance=lambda scored: 5 / scored.texts, least_classes=6),
        "mean_per_class": Metric(values=_mean_per_class, chance=lambda scored: 1 / scored.texts),
        "roc_auc": Metric(
            values=_two_class_auc, chance=lambda _: 0.5, undefined=_one_class_only, least_classes=2, most_classes=2
        ),
    },
    "multilabel": {
        "mean_average_precision": Metric(
            values=_mean_average_precision, chance=_random_precision, undefined=_no_positive
        ),
        "roc_auc": Metric(values=partial(_mean_over_classes, roc_auc), chance=lambda _: 0.5, undefined=_no_contrast),
    },
    "retrieval": {
        **{f"text_to_image_r{rank}": _recall(rank, "text_to_image") for rank in RECALL_RANKS},
        **{f"image_to_text_r{rank}": _recall(rank, "image_to_text") for rank in RECALL_RANKS},
    },
}
"""Metrics by kind of task, then by name. The first of a kind is its default main metric."""
