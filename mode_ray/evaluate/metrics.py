"""Metrics of zero-shot classification and retrieval, as fractions between 0 and 1.

Ties go by index everywhere: of equal scores the one with the lower index ranks first, as argmax has it. A
model whose scores are all equal therefore gets what guessing one fixed answer gets, and the order of equal
scores never depends on a library's sort.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mode_ray.errors import DataError

RECALL_RANKS = (1, 5, 10)
_SCORES_AT_ONCE = 1 << 23


def classification_metrics(
    scores_il: npt.NDArray[np.floating], labels_i: npt.NDArray[np.integer], n_classes: int
) -> dict[str, float]:
    """Accuracy of class scores.

    Args:
        scores_il: One row an image, one column a class.
        labels_i: The right class of every image.
        n_classes: Number of classes; must be the number of columns.

    Returns:
        `top1`; `top5`, left out where there are at most 5 classes, since it would be 1 for any model; and
        `mean_per_class`, the mean over the classes that occur of the share of their images that are right.

    Raises:
        DataError: Shapes do not fit, there are no images, a label is out of range or a score is not a number.
    """
    _check_scores(scores_il, (len(labels_i), n_classes), "images and classes")
    if labels_i.min() < 0 or labels_i.max() >= n_classes:
        raise DataError(f"labels run from {labels_i.min()} to {labels_i.max()}, outside 0 to {n_classes - 1}")
    label_scores_i = np.take_along_axis(scores_il, labels_i[:, None], axis=1)
    before_il = np.arange(n_classes) < labels_i[:, None]
    rank_i = ((scores_il > label_scores_i) | ((scores_il == label_scores_i) & before_il)).sum(axis=1)
    right_i = rank_i == 0
    images_c = np.bincount(labels_i, minlength=n_classes)
    right_c = np.bincount(labels_i, weights=right_i, minlength=n_classes)
    occurs = images_c > 0
    metrics = {
        "top1": float(right_i.mean()),
        "mean_per_class": float((right_c[occurs] / images_c[occurs]).mean()),
    }
    if n_classes > 5:
        metrics["top5"] = float((rank_i < 5).mean())
    return metrics


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
    images, texts = len(scores_ij), len(image_of_text)
    backward_ij = scores_ij if text_to_image_scores_ij is None else text_to_image_scores_ij
    _check_scores(scores_ij, (images, texts), "images and texts")
    _check_scores(backward_ij, (images, texts), "images and texts")
    if image_of_text.min() < 0 or image_of_text.max() >= images:
        raise DataError(
            f"image_of_text runs from {image_of_text.min()} to {image_of_text.max()}, outside 0 to {images - 1}"
        )
    if captions is not None and len(captions) != texts:
        raise DataError(f"there are {len(captions)} captions but {texts} texts")
    right_ij = _right_pairs(image_of_text, captions, images)
    asked = np.unique(image_of_text)
    forward = _best_ranks(scores_ij, right_ij)[asked]
    backward = _best_ranks(backward_ij.T, right_ij.T.tocsr())
    metrics = _recalls("image_to_text", forward, texts)
    return metrics | _recalls("text_to_image", backward, images)


def macro_mean(values: Mapping[str, float | None]) -> float | None:
    """The plain mean over tasks, or None where a task is missing: such means cannot be compared."""
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _right_pairs(
    image_of_text: npt.NDArray[np.integer], captions: Sequence[str] | None, images: int
) -> sparse.csr_array:
    """Which text is right for which image: boolean, images by texts."""
    texts = len(image_of_text)
    caption_ids: dict[str, int] = {}
    caption_j = (
        np.arange(texts)
        if captions is None
        else np.array([caption_ids.setdefault(caption, len(caption_ids)) for caption in captions])
    )
    has_ic = sparse.csr_array((np.ones(texts, bool), (image_of_text, caption_j)), shape=(images, texts))
    return has_ic[:, caption_j].astype(bool).tocsr()


def _best_ranks(scores_qa: npt.NDArray[np.floating], right_qa: sparse.csr_array) -> npt.NDArray[np.int64]:
    """Rank (0 = first) of every query's best right answer; without a right answer, the number of answers."""
    queries, answers = scores_qa.shape
    ranks = np.full(queries, answers, dtype=np.int64)
    step = max(1, _SCORES_AT_ONCE // answers)
    for start in range(0, queries, step):
        scores = scores_qa[start : start + step]
        right = right_qa[start : start + step].toarray()
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        first = (right & (scores == best)).argmax(axis=1)
        ahead = (scores > best) | ((scores == best) & (np.arange(answers) < first[:, None]))
        ranks[start : start + step] = np.where(right.any(axis=1), ahead.sum(axis=1), answers)
    return ranks


def _recalls(direction: str, ranks: npt.NDArray[np.int64], candidates: int) -> dict[str, float]:
    kept = [rank for rank in RECALL_RANKS if rank == 1 or rank < candidates]
    return {f"{direction}_r{rank}": float((ranks < rank).mean()) for rank in kept}


def _check_scores(scores: npt.NDArray[np.floating], shape: tuple[int, int], sides: str) -> None:
    if scores.shape != shape:
        raise DataError(f"scores have shape {scores.shape}, expected {shape} ({sides})")
    if 0 in shape:
        raise DataError(f"no scores to measure: shape {shape} ({sides})")
    if not np.isfinite(scores).all():
        raise DataError("scores hold a value that is not a finite number: the model's output is broken")


def difference_margin(pairs: Sequence[tuple[float, float, int]]) -> float:
    """95 % margin on the difference of two models' macro means that is due to the finite test sets.

    Binomial, and both models' errors taken as independent; both answer the same items, so the true margin is
    mostly smaller. It says nothing of the noise between training seeds.

    Args:
        pairs: For every task both models' fraction of right answers and the number of test items.
    """
    variance = sum((a * (1 - a) + b * (1 - b)) / max(1, items) for a, b, items in pairs)
    return 1.96 * math.sqrt(variance) / len(pairs)
