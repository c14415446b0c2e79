"""Exact counts of assigned captions; quantiles of the squared distance come from a fixed fine histogram."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.quantiles import training_quantiles
from mode_ray.errors import DataError, UsageError

# Unit vectors and the means of some are at most 2 apart.
LARGEST_SQUARED_DISTANCE = 4.0
HISTOGRAM_BINS = 16_384

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AssignmentTally:
    """What drift needs to know of assigned captions; tallies of shards add up.

    Attributes:
        rows_m: int64 [m], captions of each fine cluster.
        far_m: int64 [m], those of them that are far from their center.
        histogram_b: int64 [HISTOGRAM_BINS], captions by squared distance, equal bins over 0 to 4.
    """

    rows_m: Counts
    far_m: Counts
    histogram_b: Counts

    @classmethod
    def empty(cls, m: int) -> Self:
        """The tally of no caption."""
        return cls(np.zeros(m, np.int64), np.zeros(m, np.int64), np.zeros(HISTOGRAM_BINS, np.int64))

    @classmethod
    def count(
        cls, unit: str, fine_b: npt.NDArray[np.integer[Any]], distance_b: npt.NDArray[np.float32], m: int, far: float
    ) -> Self:
        """Tally the captions of one unit.

        Args:
            unit: Its name.
            fine_b: Fine cluster of each caption, [b].
            distance_b: Its squared distance, float32 [b].
            m: Number of fine clusters.
            far: See `far_mask`.

        Raises:
            DataError: A fine cluster or distance that no clustering of m centers can have given.
        """
        if len(fine_b) and not (fine_b.min() >= 0 and fine_b.max() < m and np.isfinite(distance_b).all()):
            raise DataError(
                f"unit {unit}: its assignments are not of the run's {m} centers; run the assign stage again"
            )
        far_b = far_mask(distance_b, far)
        bins_b = (distance_b * (HISTOGRAM_BINS / LARGEST_SQUARED_DISTANCE)).astype(np.int64)
        return cls(
            rows_m=np.bincount(fine_b, minlength=m).astype(np.int64),
            far_m=np.bincount(fine_b[far_b], minlength=m).astype(np.int64),
            # float16 embeddings are a little longer or shorter than 1.
            histogram_b=np.bincount(np.clip(bins_b, 0, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS).astype(np.int64),
        )

    def __add__(self, other: "AssignmentTally") -> "AssignmentTally":
        return AssignmentTally(
            self.rows_m + other.rows_m, self.far_m + other.far_m, self.histogram_b + other.histogram_b
        )

    @property
    def rows(self) -> int:
        """All captions."""
        return int(self.rows_m.sum())

    @property
    def far_rows(self) -> int:
        """All far captions."""
        return int(self.far_m.sum())

    def quantile(self, share: float) -> float:
        """Squared distance below which this share of the captions lies, to within a bin (0.00025)."""
        cumulative_b = np.cumsum(self.histogram_b)
        rank = share * cumulative_b[-1]
        bin_ = int(np.searchsorted(cumulative_b, rank, side="left"))
        before = cumulative_b[bin_ - 1] if bin_ else 0
        within = (rank - before) / max(1, self.histogram_b[bin_])
        return float((bin_ + within) * LARGEST_SQUARED_DISTANCE / HISTOGRAM_BINS)


def far_mask(distance_b: npt.NDArray[np.float32], far: float) -> npt.NDArray[np.bool_]:
    """Which captions are far from every center: their squared distance [b] is above `far`."""
    return np.asarray(distance_b > np.float32(far))


def far_distance(clustering: Clustering, far_quantile: float) -> float:
    """The squared distance above which a caption is far: a quantile of the fitted sample's.

    Raises:
        DataError: The clustering holds no quantiles.
        UsageError: It holds others than this one.
    """
    quantiles = training_quantiles(clustering)
    if far_quantile not in quantiles:
        known = ", ".join(f"{share:g}" for share in quantiles)
        raise UsageError(
            f"drift.far_quantile={far_quantile:g}: the clustering holds the quantiles {known}; use one of these"
        )
    return quantiles[far_quantile]
