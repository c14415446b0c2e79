"""Sums of rows by center, and the centers that follow from them (paper section 3.2, step 1)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.search.nearest import Float32Array

_SPLIT = 1.0 / 1024.0

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PartialSums:
    """Sums of some rows by center, for one Lloyd step.

    All three are exact: float16 values and the rounded distances are multiples of 2^-24, and float64 adds such numbers
    without error up to 2^29. The sums therefore do not depend on how rows are distributed, nor on the order of adding.

    Attributes:
        sums_md: float64 [m, d], sum of the rows of each center.
        counts_m: int64 [m].
        squared_distance_m: float64 [m], sum of the unpriced squared distances of each center's rows.
    """

    sums_md: Float64Array
    counts_m: npt.NDArray[np.int64]
    squared_distance_m: Float64Array

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        """Add partial sums.

        Raises:
            ValueError: There are none.
        """
        sums: Self | None = None
        for part in parts:
            if sums is None:
                sums = cls(part.sums_md.copy(), part.counts_m.copy(), part.squared_distance_m.copy())
                continue
            np.add(sums.sums_md, part.sums_md, out=sums.sums_md)
            np.add(sums.counts_m, part.counts_m, out=sums.counts_m)
            np.add(sums.squared_distance_m, part.squared_distance_m, out=sums.squared_distance_m)
        if sums is None:
            raise ValueError("no partial sums to merge")
        return sums

    @property
    def inertia(self) -> float:
        """Sum of squared distances of all rows."""
        return float(self.squared_distance_m.sum())


def update_centers(
    sums: PartialSums, centers_md: Float32Array, spherical: bool
) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """Move the centers to the means of their rows.

    An empty cluster is given half of the largest one: both get its mean, shifted by +1/1024 and -1/1024 of each
    coordinate.

    Returns:
        centers_md: float32 [m, d].
        donor_m: int64 [m], the cluster whose rows each center represents: itself, or the one that was split.
    """
    filled_m = sums.counts_m > 0
    means_md = centers_md.astype(np.float64)
    means_md[filled_m] = sums.sums_md[filled_m] / sums.counts_m[filled_m, None]
    donor_m = np.arange(len(centers_md))
    share_m = sums.counts_m.astype(np.float64)
    sign_d = np.where(np.arange(centers_md.shape[1]) % 2 == 0, _SPLIT, -_SPLIT)
    for empty in np.flatnonzero(~filled_m):
        donor = int(share_m.argmax())
        means_md[empty] = means_md[donor] * (1.0 + sign_d)
        means_md[donor] *= 1.0 - sign_d
        share_m[empty] = share_m[donor] = share_m[donor] / 2.0
        donor_m[empty] = donor
    if spherical:
        norms_m1 = np.linalg.norm(means_md, axis=1, keepdims=True)
        means_md = np.divide(means_md, norms_m1, out=means_md, where=norms_m1 > 0.0)
    return means_md.astype(np.float32), donor_m
