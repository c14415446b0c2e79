"""The fine centers: exact Lloyd k-means with optional balancing prices (paper section 3.2, step 1)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.fit.balance import balance_prices, capped_weights, multiplicity
from mode_ray.cluster.fit.sample_rows import CandidateSearch, Hashes, LocalRows, SampleRows, Vectors
from mode_ray.cluster.fit.seeding import MAX_CENTERS_OF_PLUS_PLUS, InitMethod, initial_centers
from mode_ray.cluster.fit.sizes import balance_score, imbalance_factor, max_over_mean
from mode_ray.cluster.fit.sums import Float64Array, PartialSums, update_centers
from mode_ray.cluster.search.nearest import Float32Array
from mode_ray.config.cluster import FineConfig
from mode_ray.errors import DataError

_POLISH_ROUNDS = 2
_POLISH_UPDATES = 50
_LAST_RATE_SHARE = 0.25
# Reach of candidates, in multiples of the first price step. A longer reach costs time, and lets prices change faster
# than the centers follow.
_REACH_STEPS = 5.0


@dataclass(frozen=True)
class IterationReport:
    """The assignment of one Lloyd step, before the centers move.

    Attributes:
        iteration: From 1.
        inertia: Sum of unpriced squared distances of the rows to their centers.
        max_over_mean: Size of the largest cluster over the mean size.
        imbalance_factor: m * sum(n^2) / N^2.
        balance_score: At most 1 if both figures meet their targets.
        empty_clusters: Clusters without a row; each of them is then given half of a large one.
    """

    iteration: int
    inertia: float
    max_over_mean: float
    imbalance_factor: float
    balance_score: float
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
        history: One report per Lloyd step.
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


@dataclass(frozen=True, eq=False)
class FitState:
    """A fit between two iterations. With the rows and the config, it is all that is needed to resume.

    Attributes:
        centers_md: float32 [m, d].
        prices_m: float64 [m].
        history: One report per iteration so far.
        init: How the first centers were chosen.
    """

    centers_md: Float32Array
    prices_m: Float64Array
    history: tuple[IterationReport, ...]
    init: InitMethod


def fit_fine(sample_nd: Vectors, config: FineConfig, seed: int, threads: int) -> FineFit:
    """`fit_rows` for an array of rows: floats [n, d], converted to float16."""
    return fit_rows(LocalRows(sample_nd, threads), config, seed)


def fit_rows(
    sample: SampleRows,
    config: FineConfig,
    seed: int,
    on_iteration: Callable[[FitState], None] | None = None,
    state: FitState | None = None,
) -> FineFit:
    """Fit the fine centers on a sample of caption embeddings.

    A balanced fit updates the prices in every Lloyd step after the first, at a rate that falls to a quarter over the
    iterations. At the end it updates them once more for the final centers. The same sample, config and seed give the
    same bits, even if the rows are distributed to other processes, or the fit is interrupted and resumed.

    Args:
        sample: The rows; repeated rows count each time.
        config: m, iterations and balancing.
        seed: Seed for the first centers.
        on_iteration: Called after each Lloyd step with the state to resume from.
        state: State to resume from.

    Raises:
        DataError: Fewer distinct rows than centers.
        ValueError: A row is NaN or infinite.
    """
    m = config.centers
    hash_n = sample.hashes()
    first_u, multiplicity_n = multiplicity(hash_n)
    if len(first_u) < m:
        raise DataError(
            f"the sample has {len(first_u)} distinct embeddings ({len(hash_n)} rows) for {m} fine "
            f"centers: lower cluster.fine.centers to at most {len(first_u)}, or add more captions"
        )
    if state is None:
        init: InitMethod = config.init if m <= MAX_CENTERS_OF_PLUS_PLUS else "random"
        centers_md = initial_centers(sample, hash_n, m, init, np.random.default_rng(seed))
        state = FitState(centers_md, np.zeros(m), (), init)
    fit = _BalancedFit(sample, config, *_heavy_rows(hash_n, multiplicity_n, m)) if config.balanced else None
    while len(state.history) < config.iterations and not _settled(state, config):
        # The first step has no prices: their step size depends on the objective, and the centers still move far.
        if fit is None or not state.history:
            sums, prices_m = sample.nearest_sums(state.centers_md), state.prices_m
        else:
            sums, prices_m = fit.step(state)
        centers_md, donor_m = update_centers(sums, state.centers_md, config.spherical)
        report = _report(len(state.history) + 1, sums)
        state = replace(state, centers_md=centers_md, prices_m=prices_m[donor_m], history=(*state.history, report))
        if on_iteration:
            on_iteration(state)
    nearest = sample.nearest_sums(state.centers_md)
    prices_m, fitted_mass_m, fitted_inertia = state.prices_m, nearest.counts_m, nearest.inertia
    if fit is not None:
        prices_m, fitted_mass_m, fitted_inertia = fit.polished(state)
    return FineFit(
        centers_md=state.centers_md,
        prices_m=prices_m,
        mass_m=nearest.counts_m,
        fitted_mass_m=fitted_mass_m,
        squared_distance_m=nearest.squared_distance_m,
        fitted_inertia=fitted_inertia,
        history=state.history,
        rows=len(hash_n),
        distinct_rows=len(first_u),
        init=state.init,
    )


@dataclass(frozen=True, eq=False)
class _BalancedFit:
    sample: SampleRows
    config: FineConfig
    heavy_hashes: Hashes
    heavy_weights: Float32Array

    def step(self, state: FitState) -> tuple[PartialSums, Float64Array]:
        """Update the prices for the current centers, and return the sums of the rows under them, then the prices."""
        done = len(state.history)
        rate = self.config.price_rate * (1.0 - (1.0 - _LAST_RATE_SHARE) * done / self.config.iterations)
        search, step = self._search(done, state, state.prices_m, rate)
        prices_m = self._moved(search, step, self.config.price_updates)
        return self.sample.priced_sums(search, prices_m), prices_m

    def polished(self, state: FitState) -> tuple[Float64Array, npt.NDArray[np.int64], float]:
        """Prices for the final centers, with the masses and the inertia under them.

        The rounds end early if both balance figures meet their targets; else the best round is returned.
        """
        rate, updates = self.config.price_rate / 2.0, max(self.config.price_updates, _POLISH_UPDATES)
        best_score, prices_m = float("inf"), state.prices_m
        best = (prices_m, np.zeros(len(prices_m), np.int64), 0.0)
        for round_number in range(_POLISH_ROUNDS + 1):
            search, step = self._search(self.config.iterations + round_number, state, prices_m, rate)
            score = balance_score(self.sample.sizes(search, prices_m))
            if score < best_score:
                sums = self.sample.priced_sums(search, prices_m)
                best_score, best = score, (prices_m, sums.counts_m, sums.inertia)
            if best_score <= 1.0:
                break
            if round_number < _POLISH_ROUNDS:
                prices_m = self._moved(search, step, updates)
        return best

    def _search(
        self, number: int, state: FitState, prices_m: Float64Array, rate: float
    ) -> tuple[CandidateSearch, float]:
        """The search for candidates, and the price step: a share of the mean squared distance."""
        step = rate * state.history[-1].inertia / self.sample.rows
        reach = _REACH_STEPS * step
        search = CandidateSearch(number, state.centers_md, prices_m, reach, self.heavy_hashes, self.heavy_weights)
        return search, step

    def _moved(self, search: CandidateSearch, step: float, updates: int) -> Float64Array:
        def sizes(prices_m: Float64Array) -> Float64Array:
            return self.sample.sizes(search, prices_m)

        return balance_prices(search.prices_m, sizes, step, updates, search.reach / 2.0)


def _heavy_rows(hash_n: Hashes, multiplicity_n: npt.NDArray[np.int64], m: int) -> tuple[Hashes, Float32Array]:
    """Ascending hashes and weights of the rows that weigh less than 1; see `capped_weights`."""
    weights_n = capped_weights(multiplicity_n, m)
    heavy = np.flatnonzero(weights_n < 1.0)
    hashes, first = np.unique(hash_n[heavy], return_index=True)
    return hashes, weights_n[heavy][first]


def _settled(state: FitState, config: FineConfig) -> bool:
    """Whether the objective has converged, and in a balanced fit the sizes too."""
    if len(state.history) < 2:
        return False
    before, now = state.history[-2:]
    if config.balanced and now.balance_score > 1.0:
        return False
    return abs(before.inertia - now.inertia) <= config.tolerance * before.inertia


def _report(iteration: int, sums: PartialSums) -> IterationReport:
    return IterationReport(
        iteration=iteration,
        inertia=sums.inertia,
        max_over_mean=max_over_mean(sums.counts_m),
        imbalance_factor=imbalance_factor(sums.counts_m),
        balance_score=balance_score(sums.counts_m),
        empty_clusters=int((sums.counts_m == 0).sum()),
    )
