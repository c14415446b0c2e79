"""Exact counts of assigned captions, with a fixed histogram for quantiles of the squared distance."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.quantiles import training_quantiles
from mode_ray.errors import DataError, UsageError

# Unit vectors and means of unit vectors are at most 2 apart.
LARGEST_SQUARED_DISTANCE = 4.0
HISTOGRAM_BINS = 16_384

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AssignmentTally:
    """Counts of assigned captions for the drift report; the tallies of units can be added.

    Attributes:
        rows_m: int64 [m], captions of each fine cluster.
        far_m: int64 [m], the captions among them that are far from their center.
        histogram_b: int64 [HISTOGRAM_BINS], captions by squared distance, equal bins over 0 to 4.
    """

    rows_m: Counts
    far_m: Counts
    histogram_b: Counts

    @classmethod
    def empty(cls, m: int) -> Self:
        """The tally of no captions."""
        return cls(np.zeros(m, np.int64), np.zeros(m, np.int64), np.zeros(HISTOGRAM_BINS, np.int64))

    @classmethod
    def count(
        cls, unit: str, fine_b: npt.NDArray[np.integer[Any]], distance_b: npt.NDArray[np.float32], m: int, far: float
    ) -> Self:
        """Tally the captions of one unit from their fine clusters [b] and squared distances float32 [b].

        Raises:
            DataError: A fine cluster or distance is impossible for m centers.
        """
        if len(fine_b) and not (fine_b.min() >= 0 and fine_b.max() < m and np.isfinite(distance_b).all()):
            raise DataError(
                f"unit {unit}: its assignments do not fit the run's {m} centers; run the assign stage again"
            )
        far_b = far_mask(distance_b, far)
        bins_b = (distance_b * (HISTOGRAM_BINS / LARGEST_SQUARED_DISTANCE)).astype(np.int64)
        return cls(
            rows_m=np.bincount(fine_b, minlength=m).astype(np.int64),
            far_m=np.bincount(fine_b[far_b], minlength=m).astype(np.int64),
            # Lengths of float16 embeddings differ a little from 1.
            histogram_b=np.bincount(np.clip(bins_b, 0, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS).astype(np.int64),
        )

    def __add__(self, other: "AssignmentTally") -> "AssignmentTally":
        return AssignmentTally(
            self.rows_m + other.rows_m, self.far_m + other.far_m, self.histogram_b + other.histogram_b
        )

    @property
    def rows(self) -> int:
        """Number of all captions."""
        return int(self.rows_m.sum())

    @property
    def far_rows(self) -> int:
        """Number of far captions."""
        return int(self.far_m.sum())

    def quantile(self, share: float) -> float:
        """The quantile of the squared distance, to within a bin (0.00025)."""
        cumulative_b = np.cumsum(self.histogram_b)
        rank = share * cumulative_b[-1]
        bin_ = int(np.searchsorted(cumulative_b, rank, side="left"))
        before = cumulative_b[bin_ - 1] if bin_ else 0
        within = (rank - before) / max(1, self.histogram_b[bin_])
        return float((bin_ + within) * LARGEST_SQUARED_DISTANCE / HISTOGRAM_BINS)


def far_mask(distance_b: npt.NDArray[np.float32], far: float) -> npt.NDArray[np.bool_]:
    """Mask of the captions whose squared distance [b] is above `far`."""
    return np.asarray(distance_b > np.float32(far))


def far_distance(clustering: Clustering, far_quantile: float) -> float:
    """The squared distance above which a caption is far: a quantile of the fitted sample.

    Raises:
        DataError: The clustering has no quantiles.
        UsageError: The clustering does not have this quantile.
    """
    quantiles = training_quantiles(clustering)
    if far_quantile not in quantiles:
        known = ", ".join(f"{share:g}" for share in quantiles)
        raise UsageError(
            f"drift.far_quantile={far_quantile:g}: the clustering has the quantiles {known}; use one of these"
        )
    return quantiles[far_quantile]
