import numpy as np
import pytest

from mode_ray.cluster.fit.balance import balance_prices, capped_weights, multiplicity, row_hashes
from mode_ray.cluster.fit.sample_rows import CandidateSearch, LocalRows
from mode_ray.cluster.fit.sizes import balance_score, imbalance_factor, max_over_mean


def test_imbalance_of_known_sizes() -> None:
    assert imbalance_factor(np.array([5, 5, 5])) == pytest.approx(1.0)
    assert imbalance_factor(np.array([9, 0, 0])) == pytest.approx(3.0)
    assert imbalance_factor(np.array([3, 1])) == pytest.approx(2 * 10 / 16)
    assert imbalance_factor(np.zeros(4)) == 1.0
    assert max_over_mean(np.array([3, 1])) == pytest.approx(1.5)
    assert balance_score(np.array([125, 75])) > 1.0
    assert balance_score(np.full(9, 7)) == pytest.approx(0.0)


def test_a_price_update_charges_the_large_and_keeps_the_mean_price() -> None:
    asked: list[np.ndarray] = []

    def sizes(prices: np.ndarray) -> np.ndarray:
        asked.append(prices)
        return np.array([30.0, 10.0, 5.0]) if len(asked) == 1 else np.full(3, 15.0)

    prices = balance_prices(np.zeros(3), sizes, step=0.1, updates=1, limits=(1.0, np.inf))
    np.testing.assert_allclose(asked[1], [0.1, -1 / 30, -1 / 15])
    assert prices[0] > prices[1] > prices[2]
    assert prices.mean() == pytest.approx(0.0)


def test_no_price_falls_below_what_the_candidates_reach() -> None:
    asked: list[np.ndarray] = []

    def sizes(prices: np.ndarray) -> np.ndarray:
        asked.append(prices)
        return np.array([30.0, 0.0, 0.0])

    balance_prices(np.zeros(3), sizes, step=0.1, updates=20, limits=(0.3, np.inf))
    assert asked[-1].min() == pytest.approx(-0.3)
    assert asked[-1].max() > 1.0


def test_no_price_rises_above_its_limit() -> None:
    asked: list[np.ndarray] = []

    def sizes(prices: np.ndarray) -> np.ndarray:
        asked.append(prices)
        return np.array([30.0, 0.0, 0.0])

    balance_prices(np.zeros(3), sizes, step=0.1, updates=20, limits=(0.3, 0.2))
    assert asked[-1].max() == pytest.approx(0.2)


def test_prices_split_a_line_into_equal_halves() -> None:
    # Rows at 0, 1/128, ..., 127/128 and centers at 0 and 0.375: the border must move from 0.1875 to 0.5.
    sample = LocalRows(np.arange(128)[:, None] / 128)
    search = CandidateSearch(0, np.array([[0.0], [0.375]], np.float32), np.zeros(2), reach=4.0)
    assert sample.sizes(search, np.zeros(2))[0] < 32
    prices = balance_prices(
        np.zeros(2), lambda prices: sample.sizes(search, prices), step=0.05, updates=60, limits=(2.0, np.inf)
    )
    np.testing.assert_array_equal(sample.sizes(search, prices), [64, 64])
    # x^2 + p0 = (x - 0.375)^2 + p1 at the border.
    assert prices[1] - prices[0] == pytest.approx(0.5**2 - 0.125**2, abs=0.01)


def test_the_best_prices_seen_are_kept() -> None:
    sizes = iter([np.array([6.0, 4.0]), np.array([9.0, 1.0]), np.array([10.0, 0.0])])
    start = np.array([0.25, -0.25])
    np.testing.assert_array_equal(
        balance_prices(start, lambda _: next(sizes), 0.1, updates=2, limits=(1.0, np.inf)), start
    )


def test_copies_together_weigh_at_most_one_fair_share() -> None:
    multiplicity = np.array([60] * 60 + [1] * 40)
    weights = capped_weights(multiplicity, m=5)
    assert weights[:60].sum() == pytest.approx(weights.sum() / 5, rel=1e-3)
    np.testing.assert_array_equal(weights[60:], np.ones(40))
    np.testing.assert_array_equal(capped_weights(np.ones(10, np.int64), m=5), np.ones(10))


def test_multiplicity_counts_copies_and_ignores_the_sign_of_zeros() -> None:
    rows = np.array([[1, 0], [2, 3], [1, -0.0], [3, 2], [1, 0]], np.float32)
    first, counts = multiplicity(row_hashes(rows))
    np.testing.assert_array_equal(first, [0, 1, 3])
    np.testing.assert_array_equal(counts, [3, 1, 3, 1, 3])
