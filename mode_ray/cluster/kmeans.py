"""Exact Lloyd k-means over partial sums, with optional balancing prices (paper section 3.2, step 1).

A step reads the rows only through `PartialSums`, which add up over shards: the same functions serve one
process and many.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.cluster.balance import (
    Candidates,
    Float64Array,
    balance_prices,
    balance_score,
    capped_weights,
    imbalance_factor,
    max_over_mean,
    row_multiplicity,
)
from mode_ray.cluster.nearest import Float32Array, Int32Array, NearestCenters, limited_threads
from mode_ray.config import FineConfig
from mode_ray.errors import DataError

MAX_CENTERS_OF_PLUS_PLUS = 4096
_SEEDING_ROWS_PER_CENTER = 64
_ROWS_PER_BATCH = 65_536
_SPLIT = 1.0 / 1024.0
_POLISH_ROUNDS = 2
_POLISH_UPDATES = 50
_POLISH_DECAY_UPDATES = 10.0
_LAST_RATE_SHARE = 0.25

Vectors = npt.NDArray[np.floating]
InitMethod = Literal["kmeans++", "random"]


@dataclass(frozen=True)
class PartialSums:
    """What one Lloyd step needs to know of some rows.

    Attributes:
        sums_md: float64 [m, d], sum of the rows of each center.
        counts_m: int64 [m].
        squared_distance_m: float64 [m], sum of the unpriced squared distances of each center's rows.
    """

    sums_md: Float64Array
    counts_m: npt.NDArray[np.int64]
    squared_distance_m: Float64Array

    @classmethod
    def merge(cls, parts: Mapping[int, Self]) -> Self:
        """Add the sums of shards in the order of their numbers, so that it does not matter who is first.

        Raises:
            ValueError: No parts.
        """
        if not parts:
            raise ValueError("no partial sums to merge")
        ordered = [parts[shard] for shard in sorted(parts)]
        sums_md, counts_m = ordered[0].sums_md.copy(), ordered[0].counts_m.copy()
        squared_distance_m = ordered[0].squared_distance_m.copy()
        for part in ordered[1:]:
            sums_md += part.sums_md
            counts_m += part.counts_m
            squared_distance_m += part.squared_distance_m
        return cls(sums_md, counts_m, squared_distance_m)

    @property
    def inertia(self) -> float:
        """Sum of squared distances of all rows."""
        return float(self.squared_distance_m.sum())


@dataclass(frozen=True)
class IterationReport:
    """The assignment that one Lloyd step found, before the centers moved.

    Attributes:
        iteration: From 1.
        inertia: Sum of unpriced squared distances of the rows to their centers.
        max_over_mean: Size of the largest cluster over the mean size.
        imbalance_factor: m * sum(n^2) / N^2.
        empty_clusters: Clusters without a row; each then takes half of a large one.
    """

    iteration: int
    inertia: float
    max_over_mean: float
    imbalance_factor: float
    empty_clusters: int


@dataclass(frozen=True)
class FineFit:
    """A fitted fine clustering.

    Attributes:
        centers_md: float32 [m, d].
        prices_m: float64 [m], mean 0; all 0 for plain k-means.
        mass_m: int64 [m], rows of the sample by nearest center, prices ignored.
        fitted_mass_m: int64 [m], rows of the sample under the prices; equals `mass_m` for plain k-means.
        squared_distance_m: float64 [m], sum of squared distances of the rows counted in `mass_m`.
        fitted_inertia: Sum of squared distances of all rows under the prices.
        history: One report a Lloyd step.
        rows: Rows of the sample.
        distinct_rows: Distinct vectors among them.
        init: How the first centers were chosen.
    """

    centers_md: Float32Array
    prices_m: Float64Array
    mass_m: npt.NDArray[np.int64]
    fitted_mass_m: npt.NDArray[np.int64]
    squared_distance_m: Float64Array
    fitted_inertia: float
    history: tuple[IterationReport, ...]
    rows: int
    distinct_rows: int
    init: InitMethod

    @property
    def duplicate_rows(self) -> int:
        """Rows that repeat another row."""
        return self.rows - self.distinct_rows


def partial_sums(
    vectors_nd: Vectors, fine_n: Int32Array, squared_distance_n: Float32Array, m: int, threads: int
) -> PartialSums:
    """Sums of assigned rows, in float64."""
    sums = torch.zeros((m, vectors_nd.shape[1]), dtype=torch.float64)
    with limited_threads(threads):
        for start in range(0, len(vectors_nd), _ROWS_PER_BATCH):
            rows = slice(start, start + _ROWS_PER_BATCH)
            values = torch.from_numpy(np.ascontiguousarray(vectors_nd[rows], np.float64))
            sums.index_add_(0, torch.from_numpy(fine_n[rows]), values)
    return PartialSums(
        sums_md=sums.numpy(),
        counts_m=np.bincount(fine_n, minlength=m).astype(np.int64),
        squared_distance_m=np.bincount(fine_n, weights=squared_distance_n, minlength=m).astype(np.float64),
    )


def lloyd_step(
    vectors_nd: Vectors, centers_md: Float32Array, prices_m: Float64Array | None, threads: int
) -> PartialSums:
    """Assign rows to their best centers and sum them up.

    Args:
        vectors_nd: Floats [n, d].
        centers_md: float32 [m, d].
        prices_m: float64 [m], or None for the nearest centers.
        threads: CPU threads.

    Raises:
        ValueError: A vector is NaN or infinite.
    """
    fine_n, squared_distance_n = NearestCenters(centers_md, prices_m, threads).search(vectors_nd)
    return partial_sums(vectors_nd, fine_n, squared_distance_n, len(centers_md), threads)


def update_centers(
    sums: PartialSums, centers_md: Float32Array, spherical: bool
) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """Move the centers to the means of their rows.

    An empty cluster takes half of the largest one: both get its mean, moved apart by 1/1024 of each
    coordinate.

    Returns:
        centers_md: float32 [m, d].
        donor_m: int64 [m], the cluster whose rows each center stands for: itself, or the one that was split.
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


def initial_centers(sample_nd: Vectors, m: int, method: InitMethod, rng: np.random.Generator) -> Float32Array:
    """Choose m distinct rows as first centers.

    `kmeans++` is the greedy variant (several draws in proportion to the squared distance, the best is
    kept), on a uniform sub-sample of 64 rows a center.

    Returns:
        float32 [m, d].

    Raises:
        ValueError: Fewer than m distinct rows.
    """
    rows = np.arange(len(sample_nd))
    if len(rows) > _SEEDING_ROWS_PER_CENTER * m:
        rows = np.sort(rng.choice(len(rows), _SEEDING_ROWS_PER_CENTER * m, replace=False))
    distinct = rows[row_multiplicity(sample_nd[rows])[0]]
    if len(distinct) < m:
        distinct = row_multiplicity(sample_nd)[0]
    if len(distinct) < m:
        raise ValueError(f"{len(distinct)} distinct rows are fewer than m={m} centers")
    if method == "random":
        chosen = rng.choice(len(distinct), m, replace=False)
    else:
        chosen = _greedy_plus_plus(np.ascontiguousarray(sample_nd[distinct], np.float32), m, rng)
    return np.array(sample_nd[distinct[chosen]], np.float32)


def _greedy_plus_plus(rows_ud: Float32Array, m: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    rows = torch.from_numpy(rows_ud)
    norms_u = rows.square().sum(dim=1)
    trials = 2 + int(np.log(m))
    chosen = np.empty(m, np.intp)
    distance_u = torch.full((len(rows),), float("inf"))
    draws = rng.integers(len(rows), size=1)
    for position in range(m):
        drawn = torch.from_numpy(draws)
        to_drawn_ut = torch.addmm(norms_u[:, None] + norms_u[drawn], rows, rows[drawn].T, alpha=-2.0)
        # Distinct rows keep a chance even where float32 sees no distance between them.
        reduced_ut = torch.minimum(to_drawn_ut.clamp_(min=1e-12), distance_u[:, None])
        best = int(reduced_ut.sum(dim=0).argmin())
        chosen[position] = draws[best]
        distance_u = reduced_ut[:, best].contiguous()
        distance_u[chosen[: position + 1]] = 0.0
        cumulative_u = torch.cumsum(distance_u, 0, dtype=torch.float64).numpy()
        draws = np.searchsorted(cumulative_u, rng.random(trials) * cumulative_u[-1], side="right")
        draws = np.minimum(draws, len(rows) - 1)
    return chosen


def fit_fine(
    sample_nd: Vectors,
    config: FineConfig,
    seed: int,
    threads: int,
    on_iteration: Callable[[IterationReport], None] | None = None,
) -> FineFit:
    """Fit the fine centers on a sample of caption embeddings.

    Balanced fits update the prices on each Lloyd step's candidates, at a rate that falls to a quarter over
    the iterations, and polish them at the end for the centers as they are.

    Args:
        sample_nd: Floats [n, d]; equal rows stay, as weight.
        config: m, iterations and balancing.
        seed: Of the first centers; the same seed, sample and thread count give the same fit.
        threads: CPU threads.
        on_iteration: Called after each Lloyd step.

    Raises:
        DataError: Fewer distinct rows than centers.
        ValueError: A row is NaN or infinite.
    """
    for start in range(0, len(sample_nd), _ROWS_PER_BATCH):
        if not np.isfinite(sample_nd[start : start + _ROWS_PER_BATCH]).all():
            raise ValueError(f"NaN or infinite values in rows {start} to {start + _ROWS_PER_BATCH} of the sample")
    m = config.centers
    first_u, multiplicity_n = row_multiplicity(sample_nd)
    if len(first_u) < m:
        raise DataError(
            f"the sample has {len(first_u)} distinct embeddings ({len(sample_nd)} rows) for {m} fine "
            f"centers: lower cluster.fine.centers to at most {len(first_u)}, or bring more captions"
        )
    init: InitMethod = config.init if m <= MAX_CENTERS_OF_PLUS_PLUS else "random"
    with limited_threads(threads):
        centers_md = initial_centers(sample_nd, m, init, np.random.default_rng(seed))
    prices_m = np.zeros(m)
    weights_n = capped_weights(multiplicity_n, m)
    history: list[IterationReport] = []
    for iteration in range(config.iterations):
        if config.balanced:
            decay = 1.0 - (1.0 - _LAST_RATE_SHARE) * iteration / config.iterations
            sums, prices_m = _balanced_step(
                sample_nd,
                centers_md,
                prices_m,
                weights_n=weights_n,
                config=config,
                decay=decay,
                threads=threads,
            )
        else:
            sums = lloyd_step(sample_nd, centers_md, None, threads)
        history.append(_report(iteration + 1, sums))
        if on_iteration:
            on_iteration(history[-1])
        centers_md, donor_m = update_centers(sums, centers_md, config.spherical)
        prices_m = prices_m[donor_m]
        if _settled(history, sums, config):
            break
    nearest = lloyd_step(sample_nd, centers_md, None, threads)
    fitted_mass_m, fitted_inertia = nearest.counts_m, nearest.inertia
    if config.balanced:
        prices_m, fitted_mass_m, fitted_inertia = _polished(
            sample_nd, centers_md, prices_m, weights_n=weights_n, config=config, threads=threads
        )
    return FineFit(
        centers_md=centers_md,
        prices_m=prices_m,
        mass_m=nearest.counts_m,
        fitted_mass_m=fitted_mass_m,
        squared_distance_m=nearest.squared_distance_m,
        fitted_inertia=fitted_inertia,
        history=tuple(history),
        rows=len(sample_nd),
        distinct_rows=len(first_u),
        init=init,
    )


def _balanced_step(
    sample_nd: Vectors,
    centers_md: Float32Array,
    prices_m: Float64Array,
    *,
    weights_n: Float32Array,
    config: FineConfig,
    decay: float,
    threads: int,
) -> tuple[PartialSums, Float64Array]:
    candidates = Candidates.find(sample_nd, centers_md, prices_m, weights_n, threads)
    step = config.price_rate * decay * candidates.inertia / len(sample_nd)
    prices_m = balance_prices(prices_m, candidates.sizes, step, config.price_updates)
    fine_n, squared_distance_n = candidates.assign(prices_m)
    return partial_sums(sample_nd, fine_n, squared_distance_n, len(centers_md), threads), prices_m


def _polished(
    sample_nd: Vectors,
    centers_md: Float32Array,
    prices_m: Float64Array,
    *,
    weights_n: Float32Array,
    config: FineConfig,
    threads: int,
) -> tuple[Float64Array, npt.NDArray[np.int64], float]:
    """The best prices for these centers by exact assignments, with the masses and the inertia under them."""
    m = len(centers_md)
    best_score, best = float("inf"), (prices_m, np.zeros(m, np.int64), 0.0)
    for round_number in range(_POLISH_ROUNDS + 1):
        candidates = Candidates.find(sample_nd, centers_md, prices_m, weights_n, threads)
        score = balance_score(np.bincount(candidates.best_n, weights=weights_n, minlength=m))
        if score < best_score:
            counts_m = np.bincount(candidates.best_n, minlength=m).astype(np.int64)
            best_score, best = score, (prices_m, counts_m, candidates.inertia)
        if round_number < _POLISH_ROUNDS:
            step = config.price_rate / 2.0 * candidates.inertia / len(sample_nd)
            updates = max(config.price_updates, _POLISH_UPDATES)
            prices_m = balance_prices(prices_m, candidates.sizes, step, updates, _POLISH_DECAY_UPDATES)
    return best


def _settled(history: list[IterationReport], sums: PartialSums, config: FineConfig) -> bool:
    """Whether the objective has come to rest, and the sizes with it where they are to be balanced."""
    if len(history) < 2 or (config.balanced and balance_score(sums.counts_m) > 1.0):
        return False
    before, now = history[-2].inertia, history[-1].inertia
    return abs(before - now) <= config.tolerance * before


def _report(iteration: int, sums: PartialSums) -> IterationReport:
    return IterationReport(
        iteration=iteration,
        inertia=sums.inertia,
        max_over_mean=max_over_mean(sums.counts_m),
        imbalance_factor=imbalance_factor(sums.counts_m),
        empty_clusters=int((sums.counts_m == 0).sum()),
    )
