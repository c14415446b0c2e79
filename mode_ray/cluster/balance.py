"""Capacity prices: balanced assignment as semi-discrete optimal transport.

Every center gets one price, added to the squared distances of the rows; a center above its fair share becomes
dearer, one below cheaper. That is gradient ascent on the concave dual of the transport problem in which every
center takes an equal share of the rows: its gradient is the difference of shares. The balanced assignment
of a new row needs nothing but the prices, so it works in streaming batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.cluster.nearest import Float32Array, Int32Array, NearestCenters, limited_threads

TARGET_MAX_OVER_MEAN = 1.25
TARGET_IMBALANCE_FACTOR = 1.02
_CANDIDATES_PER_ROW = 32
_CANDIDATES_IN_ALL = 4_000_000
_ROWS_PER_BATCH = 131_072

Float64Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.integer[Any]] | npt.NDArray[np.floating[Any]]


def imbalance_factor(counts: Counts) -> float:
    """The factor m * sum(n_j^2) / (sum n_j)^2.

    It is 1 where all sizes are equal, m where one cluster has all rows, and 1 for no rows at all.
    """
    sizes = np.asarray(counts, np.float64)
    total = sizes.sum()
    return float(len(sizes) * np.square(sizes / total).sum()) if total else 1.0


def max_over_mean(counts: Counts) -> float:
    """Size of the largest cluster over the mean size; 1 for no rows at all."""
    sizes = np.asarray(counts, np.float64)
    return float(sizes.max() / sizes.mean()) if sizes.any() else 1.0


def balance_score(counts: Counts) -> float:
    """How far sizes are from balance: 0 is perfect, 1 meets both targets (1.25 x mean, factor 1.02)."""
    return max(
        (max_over_mean(counts) - 1.0) / (TARGET_MAX_OVER_MEAN - 1.0),
        (imbalance_factor(counts) - 1.0) / (TARGET_IMBALANCE_FACTOR - 1.0),
    )


def row_multiplicity(
    vectors_nd: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which rows are first of their kind, and how often each row's vector occurs.

    Rows are compared by a 64-bit hash: the sum of their float32 bits times random odd numbers. Two
    different rows collide with a chance of about 2^-60.

    Returns:
        first_u: int64 [u], index of the first row of each distinct vector, ascending.
        multiplicity_n: int64 [n].
    """
    factors_d = np.random.default_rng(0).integers(0, 2**63, vectors_nd.shape[1], dtype=np.uint64)
    factors_d = (factors_d << np.uint64(1)) | np.uint64(1)
    hash_n = np.empty(len(vectors_nd), np.uint64)
    for start in range(0, len(vectors_nd), _ROWS_PER_BATCH):
        rows = slice(start, start + _ROWS_PER_BATCH)
        bits_bd = (np.ascontiguousarray(vectors_nd[rows], np.float32) + np.float32(0.0)).view(np.uint32)
        mixed_bd = bits_bd * factors_d
        # An odd factor alone leaves the low bits of a sum to the low bits of the values.
        hash_n[rows] = (mixed_bd ^ (mixed_bd >> np.uint64(29))).sum(axis=1, dtype=np.uint64)
    _, first_u, inverse_n, count_u = np.unique(hash_n, return_index=True, return_inverse=True, return_counts=True)
    return np.sort(first_u).astype(np.int64), count_u[inverse_n].astype(np.int64)


def capped_weights(multiplicity_n: npt.NDArray[np.int64], m: int) -> Float32Array:
    """Row weights for balancing in which equal rows together count at most as one fair share of the total.

    Equal rows cannot be told apart, so a caption that is repeated more often than a cluster's fair share
    could not be balanced at any price: its cluster would become ever dearer until all copies jump to the
    next one.

    Args:
        multiplicity_n: How many rows are equal to each row, itself included.
        m: Number of clusters.
    """
    weights_n = np.ones(len(multiplicity_n))
    # Each cap lowers the total and with it the fair share; a few rounds come to rest.
    for _ in range(20):
        share = weights_n.sum() / m
        capped_n = np.minimum(1.0, share / multiplicity_n)
        if np.array_equal(capped_n, weights_n):
            break
        weights_n = capped_n
    return weights_n.astype(np.float32)


@dataclass(frozen=True)
class Candidates:
    """Each row's best centers under the prices of the moment, kept while centers stand still and prices move.

    32 candidates take 256 bytes a row, whatever m is; samples of few rows keep more, up to all m. Where
    prices move so far that the best center is none of them, the sizes are slightly off; the next search
    mends it.

    Attributes:
        fine_nk: int32 [n, k].
        squared_distance_nk: float32 [n, k], unpriced.
        weights_n: float32 [n], see `capped_weights`.
        centers: m.
        threads: CPU threads of `sizes` and `assign`.
    """

    fine_nk: Int32Array
    squared_distance_nk: Float32Array
    weights_n: Float32Array
    centers: int
    threads: int

    @classmethod
    def find(
        cls,
        vectors_nd: npt.NDArray[np.floating],
        centers_md: Float32Array,
        prices_m: Float64Array,
        weights_n: Float32Array,
        threads: int,
    ) -> Self:
        """Search the candidates of rows."""
        nearest = NearestCenters(centers_md, prices_m, threads)
        count = max(_CANDIDATES_PER_ROW, _CANDIDATES_IN_ALL // max(1, len(vectors_nd)))
        fine_nk, squared_distance_nk = nearest.candidates(vectors_nd, count)
        return cls(fine_nk, squared_distance_nk, weights_n, len(centers_md), threads)

    @property
    def best_n(self) -> Int32Array:
        """The exact assignment under the prices that the candidates were searched with, int32 [n]."""
        return self.fine_nk[:, 0]

    @property
    def inertia(self) -> float:
        """Sum of unpriced squared distances of the assignment `best_n`."""
        return float(self.squared_distance_nk[:, 0].sum(dtype=np.float64))

    def assign(self, prices_m: Float64Array) -> tuple[Int32Array, Float32Array]:
        """Best candidate of every row under prices: ids int32 [n], unpriced squared distances float32 [n]."""
        rows = len(self.fine_nk)
        fine_n, squared_distance_n = np.empty(rows, np.int32), np.empty(rows, np.float32)
        prices = torch.from_numpy(prices_m.astype(np.float32))
        with limited_threads(self.threads):
            for start in range(0, rows, _ROWS_PER_BATCH):
                batch = slice(start, start + _ROWS_PER_BATCH)
                fine_bk = torch.from_numpy(self.fine_nk[batch])
                squared_distance_bk = torch.from_numpy(self.squared_distance_nk[batch])
                surcharge_bk = torch.index_select(prices, 0, fine_bk.reshape(-1)).view(fine_bk.shape)
                best_b1 = surcharge_bk.add_(squared_distance_bk).argmin(dim=1, keepdim=True)
                fine_n[batch] = fine_bk.gather(1, best_b1)[:, 0].numpy()
                squared_distance_n[batch] = squared_distance_bk.gather(1, best_b1)[:, 0].numpy()
        return fine_n, squared_distance_n

    def sizes(self, prices_m: Float64Array) -> Float64Array:
        """Weight of the rows that each center gets under prices: float64 [m]."""
        fine_n, _ = self.assign(prices_m)
        return np.bincount(fine_n, weights=self.weights_n, minlength=self.centers).astype(np.float64)


def updated_prices(prices_m: Float64Array, sizes_m: Float64Array, step: float) -> Float64Array:
    """One price update: step * (min(size/mean, 2) - 1) is added to each price; the mean price is kept at 0.

    Linear and clamped: an update by the logarithm of size/mean overshoots, because near balance a small
    change of price moves many rows.

    Args:
        prices_m: float64 [m], in units of squared distance.
        sizes_m: float64 [m], sizes under these prices, over all shards.
        step: In units of squared distance.
    """
    mean = sizes_m.mean()
    if mean == 0.0:
        return prices_m
    moved_m = prices_m + step * (np.minimum(sizes_m / mean, 2.0) - 1.0)
    return np.asarray(moved_m - moved_m.mean())


def balance_prices(
    prices_m: Float64Array,
    sizes_of: Callable[[Float64Array], Float64Array],
    step: float,
    updates: int,
    decay_updates: float = float("inf"),
) -> Float64Array:
    """Price updates for fixed centers; the best prices seen are returned.

    Args:
        prices_m: float64 [m], where to start.
        sizes_of: Cluster sizes [m] under given prices; `Candidates.sizes`, or its sum over shards.
        step: First step size, in units of squared distance.
        updates: Number of updates.
        decay_updates: After so many updates the step is halved (harmonic decay); infinite: a constant step.

    Returns:
        The prices with the lowest `balance_score`, the given ones among them.
    """
    best_m, best_score = prices_m, float("inf")
    for update in range(updates + 1):
        sizes_m = sizes_of(prices_m)
        score = balance_score(sizes_m)
        if score < best_score:
            best_m, best_score = prices_m, score
        if update < updates:
            prices_m = updated_prices(prices_m, sizes_m, step / (1.0 + update / decay_updates))
    return best_m
