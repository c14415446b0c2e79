"""Capacity prices: balanced assignment as semi-discrete optimal transport.

Every center has one price, which is added to the squared distances of the rows. The price of a center above its fair
share rises, the price of a center below it falls. This is gradient ascent on the concave dual of the transport problem
in which every center takes an equal share of the rows; the gradient is the difference of the shares. The balanced
assignment of a new row needs only the prices, so it works in streaming batches.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.fit.sizes import balance_score

_ROWS_PER_BATCH = 8_192
_CLAMP = 4.0

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


def row_hashes(vectors_nd: npt.NDArray[np.floating]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of every row, equal for equal rows: uint64 [n].

    The hash is the sum of the float32 bits times random odd numbers. Two different rows collide with a probability of
    about 2^-60.
    """
    import torch

    from mode_ray.cluster.search import kernels

    drawn_d = np.random.default_rng(0).integers(0, 2**63, vectors_nd.shape[1:], dtype=np.uint64)
    factors_d = (drawn_d << np.uint64(1)) | np.uint64(1)
    hash_n = np.empty(len(vectors_nd), np.uint64)
    for start in range(0, len(vectors_nd), _ROWS_PER_BATCH):
        rows = slice(start, start + _ROWS_PER_BATCH)
        # numpy's conversion from float16 takes four times as long as torch's. Adding 0.0 turns -0.0 into 0.0.
        singles_bd = torch.from_numpy(np.array(vectors_nd[rows])).float() + 0.0
        kernels.hash_rows(singles_bd.numpy().view(np.uint32), factors_d, hash_n[rows])
    return hash_n


def multiplicity(hash_n: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first row of each distinct vector, and how often each row's vector occurs, from `row_hashes`.

    Returns:
        first_u: int64 [u], index of the first row of each distinct vector, ascending.
        multiplicity_n: int64 [n].
    """
    _, first_u, inverse_n, count_u = np.unique(hash_n, return_index=True, return_inverse=True, return_counts=True)
    return np.sort(first_u).astype(np.int64), count_u[inverse_n].astype(np.int64)


def capped_weights(multiplicity_n: npt.NDArray[np.int64], m: int) -> Float32Array:
    """Row weights for balancing, float32 [n]: equal rows together weigh at most one fair share of the total.

    All copies of a caption always go to the same cluster. A caption with more copies than a cluster's fair share could
    therefore not be balanced: the price of its cluster would rise until all copies move to the next one.

    Args:
        multiplicity_n: How many rows are equal to each row, itself included.
        m: Number of clusters.
    """
    weights_n = np.ones(len(multiplicity_n))
    # Each cap lowers the total and thereby the fair share; this converges in a few rounds.
    for _ in range(20):
        share = weights_n.sum() / m
        capped_n = np.minimum(1.0, share / multiplicity_n)
        if np.array_equal(capped_n, weights_n):
            break
        weights_n = capped_n
    # Sums of multiples of 2^-20 are exact in float64, in any order.
    return (np.round(weights_n * 2**20) / 2**20).astype(np.float32)


def balance_prices(
    prices_m: Float64Array,
    sizes_of: Callable[[Float64Array], Float64Array],
    step: float,
    updates: int,
    limits: tuple[float, float],
) -> Float64Array:
    """Update the prices of fixed centers, and return the best prices seen.

    Each update adds step_j * (min(size_j/mean, 4) - 1) to the price of center j. The update is linear and clamped,
    because a logarithmic one overshoots near balance. The same price change may move a few rows or a thousand, so each
    center has its own step: it is halved when the center's size crosses the mean, and grows by a tenth otherwise (as
    in Rprop, Riedmiller and Braun 1993).

    Args:
        prices_m: float64 [m], the first prices.
        sizes_of: Returns the cluster sizes [m] under given prices, over all rows.
        step: First and largest step, in units of squared distance.
        updates: Number of updates.
        limits: The most that a price may fall, and rise. Below the first, a center would attract rows that do not have
            it among their candidates. Above the second, rows would leave it if they had more candidates.

    Returns:
        The prices with the lowest `balance_score`, including the first ones; their mean is 0.
    """
    lowest_m, highest_m = prices_m - limits[0], prices_m + limits[1]
    best_m, best_score = prices_m, float("inf")
    steps_m, before_m = np.full(len(prices_m), step), np.zeros(len(prices_m))
    for update in range(updates + 1):
        sizes_m = sizes_of(prices_m)
        score = balance_score(sizes_m)
        if score < best_score:
            best_m, best_score = prices_m, score
        if update == updates or not sizes_m.any():
            break
        excess_m = np.minimum(sizes_m / sizes_m.mean(), _CLAMP) - 1.0
        steps_m = np.where(excess_m * before_m < 0.0, steps_m * 0.5, np.minimum(steps_m * 1.1, step))
        prices_m = np.clip(prices_m + steps_m * excess_m, lowest_m, highest_m)
        before_m = excess_m
    return np.asarray(best_m - best_m.mean())
