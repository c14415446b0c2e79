"""The fine centers: exact Lloyd k-means with optional balancing prices (paper section 3.2, step 1)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.fit.balance import multiplicity
from mode_ray.cluster.fit.balanced import BalancedFit, PricedRows
from mode_ray.cluster.fit.sample_rows import LocalRows, SampleRows, Vectors
from mode_ray.cluster.fit.seeding import MAX_CENTERS_OF_PLUS_PLUS, InitMethod, initial_centers
from mode_ray.cluster.fit.sizes import balance_score, imbalance_factor, max_over_mean
from mode_ray.cluster.fit.state import FitState, IterationReport
from mode_ray.cluster.fit.sums import Float64Array, PartialSums, update_centers
from mode_ray.cluster.search.nearest import Float32Array
from mode_ray.config.cluster import FineConfig
from mode_ray.errors import DataError

EARLY_EVERY, EARLY_ROWS_PER_CENTER = 4, 100
"""The first steps of a plain fit, where the centers move far, read every 4th row if these are 100 for each center."""


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
        extended_from: See `FitState`.
        balance_score: Of a balanced fit, `balance_score` of the sizes under the prices, where equal rows weigh at most
            one fair share together: at most 1 if the balance was reached. None for plain k-means.
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
    extended_from: int | None = None
    balance_score: float | None = None


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
    iterations. At the end it updates them once more for the final centers. If the sizes still miss their targets, the
    fit continues with up to `config.iterations` further steps (`FitState.extended_from`), each of which finds the
    prices anew until they balance. Such steps never raise the objective, so they end when it has converged.

    The same sample, config and seed give the same bits, even if the rows are distributed to other processes, or the
    fit is interrupted and resumed.

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
    fit = BalancedFit.of(sample, config, hash_n, multiplicity_n) if config.balanced else None

    def advance(state: FitState, sums: PartialSums, prices_m: Float64Array) -> FitState:
        centers_md, donor_m = update_centers(sums, state.centers_md, config.spherical)
        history = (*state.history, _report(len(state.history) + 1, sums, sample.rows))
        state = replace(state, centers_md=centers_md, prices_m=prices_m[donor_m], history=history)
        if on_iteration:
            on_iteration(state)
        return state

    early = early_steps(sample.rows, config)
    while state.extended_from is None and len(state.history) < config.iterations:
        if _settled(state, config, early):
            break
        if len(state.history) < early:
            state = advance(state, sample.nearest_sums(state.centers_md, EARLY_EVERY), state.prices_m)
        # The first step has no prices: their step size depends on the objective, and the centers still move far.
        elif fit is None or not state.history:
            state = advance(state, sample.nearest_sums(state.centers_md), state.prices_m)
        else:
            state = advance(state, *fit.step(state))
    priced: PricedRows | None = None
    if fit is not None and state.extended_from is None:
        priced = fit.polished(state)
        if priced.score > 1.0:
            state = replace(state, extended_from=len(state.history))
    if fit is not None and state.extended_from is not None:
        priced = fit.steady(state)
        while len(state.history) < state.most_iterations(config.iterations) and not _converged(state, config):
            state = advance(state, priced.sums, priced.prices_m)
            priced = fit.steady(state)
    nearest = sample.nearest_sums(state.centers_md)
    return FineFit(
        centers_md=state.centers_md,
        prices_m=state.prices_m if priced is None else priced.prices_m,
        mass_m=nearest.counts_m,
        fitted_mass_m=(priced.sums if priced else nearest).counts_m,
        squared_distance_m=nearest.squared_distance_m,
        fitted_inertia=(priced.sums if priced else nearest).inertia,
        history=state.history,
        rows=len(hash_n),
        distinct_rows=len(first_u),
        init=state.init,
        extended_from=state.extended_from,
        balance_score=None if priced is None else priced.score,
    )


def early_steps(rows: int, config: FineConfig) -> int:
    """How many of the first Lloyd steps read only a quarter of the rows.

    None in a balanced fit: after them, it needs more steps until it has converged, which take the time that they save.
    """
    has_many = rows >= EARLY_EVERY * EARLY_ROWS_PER_CENTER * config.centers
    return config.iterations // 4 if has_many and not config.balanced else 0


def _settled(state: FitState, config: FineConfig, early: int) -> bool:
    """Whether the objective has converged, and in a balanced fit the sizes too."""
    if len(state.history) < early + 2:
        return False
    before, now = state.history[-2:]
    if config.balanced and now.balance_score > 1.0:
        return False
    return _is_small(before, now, config)


def _converged(state: FitState, config: FineConfig) -> bool:
    """Whether the objective has converged in the steps after `extended_from`: further ones change little."""
    steps = state.history[state.extended_from :]
    return len(steps) >= 2 and _is_small(steps[-2], steps[-1], config)


def _is_small(before: IterationReport, now: IterationReport, config: FineConfig) -> bool:
    return abs(before.inertia - now.inertia) <= config.tolerance * before.inertia


def _report(iteration: int, sums: PartialSums, rows: int) -> IterationReport:
    return IterationReport(
        iteration=iteration,
        inertia=sums.inertia * (rows / int(sums.counts_m.sum())),
        max_over_mean=max_over_mean(sums.counts_m),
        imbalance_factor=imbalance_factor(sums.counts_m),
        balance_score=balance_score(sums.counts_m),
        empty_clusters=int((sums.counts_m == 0).sum()),
    )
