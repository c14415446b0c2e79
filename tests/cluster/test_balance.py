import numpy as np
import pytest

from mode_ray.cluster.balance import (
    Candidates,
    balance_prices,
    balance_score,
    capped_weights,
    imbalance_factor,
    max_over_mean,
    updated_prices,
)


def test_imbalance_of_known_sizes() -> None:
    assert imbalance_factor(np.array([5, 5, 5])) == pytest.approx(1.0)
    assert imbalance_factor(np.array([9, 0, 0])) == pytest.approx(3.0)
    assert imbalance_factor(np.array([3, 1])) == pytest.approx(2 * 10 / 16)
    assert imbalance_factor(np.zeros(4)) == 1.0
    assert max_over_mean(np.array([3, 1])) == pytest.approx(1.5)
    assert balance_score(np.array([125, 75])) > 1.0
    assert balance_score(np.full(9, 7)) == pytest.approx(0.0)


def test_a_price_update_charges_the_large_and_keeps_the_mean_price() -> None:
    prices = updated_prices(np.zeros(3), np.array([30.0, 10.0, 5.0]), step=0.1)
    assert prices[0] > prices[1] > prices[2]
    assert prices.sum() == pytest.approx(0.0)
    np.testing.assert_array_equal(updated_prices(np.zeros(3), np.full(3, 8.0), step=0.1), np.zeros(3))


def test_prices_split_a_line_into_equal_halves() -> None:
    # Rows at 0, 0.01, ..., 0.99 and centers at 0 and 0.4: the border must move from 0.2 to 0.5.
    rows = np.arange(100, dtype=np.float32)[:, None] / 100
    centers = np.array([[0.0], [0.4]], np.float32)
    candidates = Candidates.find(rows, centers, np.zeros(2), np.ones(100, np.float32), threads=1)
    assert candidates.sizes(np.zeros(2))[0] < 25
    prices = balance_prices(np.zeros(2), candidates.sizes, step=0.05, updates=60, decay_updates=10)
    np.testing.assert_array_equal(candidates.sizes(prices), [50, 50])
    # x^2 + p0 = (x - 0.4)^2 + p1 at the border.
    assert prices[1] - prices[0] == pytest.approx(0.5**2 - 0.1**2, abs=0.01)


def test_the_best_prices_seen_are_kept() -> None:
    sizes = iter([np.array([6.0, 4.0]), np.array([9.0, 1.0]), np.array([10.0, 0.0])])
    start = np.array([0.25, -0.25])
    np.testing.assert_array_equal(balance_prices(start, lambda _: next(sizes), 0.1, updates=2), start)


def test_sizes_add_up_over_shards() -> None:
    rng = np.random.default_rng(0)
    rows, centers = rng.normal(size=(200, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    prices, ones = rng.normal(size=6) * 0.1, np.ones(200, np.float32)
    whole = Candidates.find(rows, centers, np.zeros(6), ones, 1).sizes(prices)
    parts = [
        Candidates.find(rows[part], centers, np.zeros(6), ones[part], 1).sizes(prices)
        for part in (slice(0, 70), slice(70, 200))
    ]
    np.testing.assert_array_equal(parts[0] + parts[1], whole)


def test_copies_together_weigh_at_most_one_fair_share() -> None:
    multiplicity = np.array([60] * 60 + [1] * 40)
    weights = capped_weights(multiplicity, m=5)
    assert weights[:60].sum() == pytest.approx(weights.sum() / 5, rel=1e-3)
    np.testing.assert_array_equal(weights[60:], np.ones(40))
    np.testing.assert_array_equal(capped_weights(np.ones(10, np.int64), m=5), np.ones(10))
