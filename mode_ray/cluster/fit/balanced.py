"""The steps of a balanced fit: prices for the current centers, and the rows under them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.fit.balance import balance_prices, capped_weights
from mode_ray.cluster.fit.sample_rows import CandidateSearch, Hashes, SampleRows
from mode_ray.cluster.fit.sizes import balance_score
from mode_ray.cluster.fit.state import FitState
from mode_ray.cluster.fit.sums import Float64Array, PartialSums
from mode_ray.cluster.search.nearest import Float32Array
from mode_ray.config.cluster import FineConfig

_POLISH_ROUNDS = 2
_POLISH_UPDATES = 50
_STEADY_ROUNDS = 16
_STALE_ROUNDS = 4
_FASTER = 4.0
_LAST_RATE_SHARE = 0.25
# Reach of candidates, in multiples of the first price step. A longer reach costs time, and lets prices change faster
# than the centers follow.
_REACH_STEPS = 5.0


@dataclass(frozen=True, eq=False)
class PricedRows:
    """Prices for fixed centers, and the rows under them.

    Attributes:
        score: `balance_score` of the weighted sizes.
        prices_m: float64 [m].
        sums: Sums of the rows.
    """

    score: float
    prices_m: Float64Array
    sums: PartialSums


@dataclass(frozen=True, eq=False)
class BalancedFit:
    """Finds prices for the centers of a state.

    Attributes:
        sample: The rows.
        config: Settings of the fit.
        heavy_hashes: uint64 [h], ascending, hashes of the rows that weigh less than 1; see `capped_weights`.
        heavy_weights: float32 [h], their weights.
    """

    sample: SampleRows
    config: FineConfig
    heavy_hashes: Hashes
    heavy_weights: Float32Array
    # The sample keeps the candidates of a search until it is given another number.
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def of(cls, sample: SampleRows, config: FineConfig, hash_n: Hashes, multiplicity_n: npt.NDArray[np.int64]) -> Self:
        """The fit of a sample, from `row_hashes` and `multiplicity` of its rows."""
        weights_n = capped_weights(multiplicity_n, config.centers)
        heavy = np.flatnonzero(weights_n < 1.0)
        hashes, first = np.unique(hash_n[heavy], return_index=True)
        return cls(sample, config, hashes, weights_n[heavy][first])

    def step(self, state: FitState) -> tuple[PartialSums, Float64Array]:
        """Update the prices for the current centers, and return the sums of the rows under them, then the prices."""
        done = len(state.history)
        rate = self.config.price_rate * (1.0 - (1.0 - _LAST_RATE_SHARE) * done / self.config.iterations)
        search, step = self._search(state, state.prices_m, rate)
        prices_m = self._moved(search, step, self.config.price_updates)
        return self.sample.priced_sums(search, prices_m), prices_m

    def polished(self, state: FitState) -> PricedRows:
        """Prices for the final centers.

        The rounds end early if both balance figures meet their targets; else the best round is returned.
        """
        rate, updates = self.config.price_rate / 2.0, max(self.config.price_updates, _POLISH_UPDATES)
        search, step = self._search(state, state.prices_m, rate)
        best = self._better(None, search)
        for _ in range(_POLISH_ROUNDS):
            if best.score <= 1.0:
                break
            search, step = self._search(state, self._moved(search, step, updates), rate)
            best = self._better(best, search)
        return best

    def steady(self, state: FitState) -> PricedRows:
        """Prices that balance the current centers as well as possible, found in rounds with fresh candidates.

        In `step`, a price may rise further than the candidates of its rows reach, and its cluster then loses more rows
        than intended. Here no price leaves the range in which the candidates of a round are complete. With balanced
        sizes in every step, Lloyd's iteration hardly raises the objective, so it converges. After a round without
        improvement, step and reach are four times as large, for clusters that are far from all others.
        """
        updates, rate, stale = max(self.config.price_updates, _POLISH_UPDATES), self.config.price_rate, 0
        search, step = self._search(state, state.prices_m, rate)
        best = self._better(None, search)
        for _ in range(_STEADY_ROUNDS):
            if best.score <= 1.0 or stale > _STALE_ROUNDS:
                break
            prices_m = self._moved(search, step, updates, rise_limit=search.reach / 2.0)
            search, step = self._search(state, prices_m, rate)
            before, best = best, self._better(best, search)
            rate, stale = (rate * _FASTER, stale + 1) if best is before else (rate, 0)
        return best

    def _better(self, best: PricedRows | None, search: CandidateSearch) -> PricedRows:
        """The rows under the prices of a search if they are more balanced, else `best`."""
        score = balance_score(self.sample.sizes(search, search.prices_m))
        if best is not None and score >= best.score:
            return best
        return PricedRows(score, search.prices_m, self.sample.priced_sums(search, search.prices_m))

    def _search(self, state: FitState, prices_m: Float64Array, rate: float) -> tuple[CandidateSearch, float]:
        """The search for candidates, and the price step: a share of the mean squared distance."""
        step = rate * state.history[-1].inertia / self.sample.rows
        number, reach = next(self._numbers), _REACH_STEPS * step
        search = CandidateSearch(number, state.centers_md, prices_m, reach, self.heavy_hashes, self.heavy_weights)
        return search, step

    def _moved(
        self, search: CandidateSearch, step: float, updates: int, rise_limit: float = float("inf")
    ) -> Float64Array:
        def sizes(prices_m: Float64Array) -> Float64Array:
            return self.sample.sizes(search, prices_m)

        return balance_prices(search.prices_m, sizes, step, updates, (search.reach / 2.0, rise_limit))
