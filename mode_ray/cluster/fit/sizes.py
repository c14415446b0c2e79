"""How evenly rows are spread over clusters."""

from typing import Any

import numpy as np
import numpy.typing as npt

TARGET_MAX_OVER_MEAN = 1.25
TARGET_IMBALANCE_FACTOR = 1.02

Counts = npt.NDArray[np.integer[Any]] | npt.NDArray[np.floating[Any]]


def imbalance_factor(counts: Counts) -> float:
    """The factor m * sum(n_j^2) / (sum n_j)^2.

    It is 1 if all sizes are equal or there are no rows, and m if one cluster has all rows.
    """
    sizes = np.asarray(counts, np.float64)
    total = sizes.sum()
    return float(len(sizes) * np.square(sizes / total).sum()) if total else 1.0


def max_over_mean(counts: Counts) -> float:
    """Size of the largest cluster over the mean size; 1 if there are no rows."""
    sizes = np.asarray(counts, np.float64)
    return float(sizes.max() / sizes.mean()) if sizes.any() else 1.0


def balance_score(counts: Counts) -> float:
    """How far sizes are from balance: 0 is perfect, 1 meets both targets (1.25 x mean, factor 1.02)."""
    return max(
        (max_over_mean(counts) - 1.0) / (TARGET_MAX_OVER_MEAN - 1.0),
        (imbalance_factor(counts) - 1.0) / (TARGET_IMBALANCE_FACTOR - 1.0),
    )
