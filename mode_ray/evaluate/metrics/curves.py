"""Areas under the curves of a score against a binary label. Items can have any count, including 0.

Equal scores are one threshold, so their order does not matter.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def roc_auc(scores_i: npt.NDArray[np.floating], positive_i: npt.NDArray[np.bool_], weights_bi: Floats) -> Floats:
    """Area under the ROC curve.

    This is the probability that a positive item scores higher than a negative one; equal scores count one half
    (Hanley and McNeil, Radiology 143, 1982).

    Args:
        scores_i: One score per item.
        positive_i: Which items are positive.
        weights_bi: Counts of the items; every row gives one area.

    Returns:
        The areas, float64 [b]; NaN if no positive or no negative item has a count above 0.
    """
    positive_bg, negative_bg = _by_threshold(scores_i, positive_i, weights_bi)
    below_bg = np.cumsum(negative_bg, axis=1) - negative_bg
    wins_b = (positive_bg * (below_bg + 0.5 * negative_bg)).sum(axis=1)
    return ratio(wins_b, positive_bg.sum(axis=1) * negative_bg.sum(axis=1))


def average_precision(
    scores_i: npt.NDArray[np.floating], positive_i: npt.NDArray[np.bool_], weights_bi: Floats
) -> Floats:
    """Average precision: the sum over thresholds of (R_n - R_(n-1)) P_n, without interpolation.

    R_n and P_n are recall and precision of the items that score at least the n-th highest threshold (Manning,
    Raghavan and Schuetze, Introduction to Information Retrieval, section 8.4). scikit-learn uses the same definition.

    Args:
        scores_i: One score per item.
        positive_i: Which items are positive.
        weights_bi: Counts of the items; every row gives one number.

    Returns:
        float64 [b]; NaN if no positive item has a count above 0.
    """
    positive_bg, negative_bg = _by_threshold(-scores_i, positive_i, weights_bi)
    found_bg = np.cumsum(positive_bg, axis=1)
    seen_bg = found_bg + np.cumsum(negative_bg, axis=1)
    # Thresholds before the first counted item add 0.
    precision_bg = found_bg / np.maximum(seen_bg, 1e-300)
    return ratio((positive_bg * precision_bg).sum(axis=1), found_bg[:, -1])


def ratio(above_b: Floats, below_b: Floats) -> Floats:
    """The element-wise quotient; NaN where the denominator is 0."""
    found_b: Floats = np.divide(above_b, below_b, out=np.full(above_b.shape, np.nan), where=below_b > 0)
    return found_b


def _by_threshold(
    scores_i: npt.NDArray[np.floating], positive_i: npt.NDArray[np.bool_], weights_bi: Floats
) -> tuple[Floats, Floats]:
    """Counts of positive and negative items at every distinct score, ascending."""
    order = np.argsort(scores_i, kind="stable")
    ascending = scores_i[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
    sorted_bi, is_positive_i = weights_bi[:, order], positive_i[order]
    positive_bg = np.add.reduceat(sorted_bi * is_positive_i, starts, axis=1)
    negative_bg = np.add.reduceat(sorted_bi * ~is_positive_i, starts, axis=1)
    return positive_bg, negative_bg
