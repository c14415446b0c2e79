import sys

import numpy as np
import pytest

from mode_ray.cluster.search import nearest
from mode_ray.cluster.search.nearest import NearestCenters
from mode_ray.errors import UsageError


def brute_force(vectors: np.ndarray, centers: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    squared = np.square(vectors[:, None].astype(np.float64) - centers[None]).sum(axis=2)
    best = (squared + prices).argmin(axis=1)
    return best, squared[np.arange(len(vectors)), best]


@pytest.mark.parametrize("priced", [False, True])
def test_search_agrees_with_brute_force_and_returns_unpriced_distances(priced: bool) -> None:
    rng = np.random.default_rng(0)
    vectors, centers = rng.normal(size=(500, 8)), rng.normal(size=(20, 8)).astype(np.float32)
    prices = rng.normal(size=20) if priced else np.zeros(20)
    fine, squared = NearestCenters(centers, prices).search(vectors.astype(np.float32))
    expected_fine, expected_squared = brute_force(vectors, centers, prices)
    assert fine.dtype == np.int32
    assert squared.dtype == np.float32
    np.testing.assert_array_equal(fine, expected_fine)
    np.testing.assert_allclose(squared, expected_squared, rtol=1e-5, atol=1e-6)


def test_a_price_moves_the_border_between_two_centers() -> None:
    centers = np.array([[0.0], [1.0]], np.float32)
    vector = np.array([[0.4]], np.float32)
    assert NearestCenters(centers).search(vector)[0][0] == 0
    fine, squared = NearestCenters(centers, np.array([-5.0, -5.3])).search(vector)
    assert fine[0] == 1
    assert squared[0] == pytest.approx(0.36, abs=1e-6)


def test_equal_centers_are_a_tie_for_the_lowest_id() -> None:
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(7, 16)).astype(np.float32)
    centers[[2, 4, 6]] = centers[2]
    fine, _ = NearestCenters(centers).search(np.repeat(centers[[6]], 50, axis=0))
    assert set(fine.tolist()) == {2}


def test_a_result_depends_on_its_vector_alone_to_the_last_bit() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(1000, 32)).astype(np.float16)
    search = NearestCenters(vectors[:300].astype(np.float32), rng.normal(size=300) * 0.1)
    fine, squared = search.search(vectors)
    for rows in (slice(0, 1), slice(7, 20), slice(500, 1000)):
        hints = rng.integers(-1, 300, len(vectors[rows])).astype(np.int32)
        for hint in (None, hints):
            some_fine, some_squared = search.search(vectors[rows], None, hint)
            np.testing.assert_array_equal(some_fine, fine[rows])
            np.testing.assert_array_equal(some_squared, squared[rows])
    threaded = NearestCenters(vectors[:300].astype(np.float32), rng.normal(size=300) * 0.1, threads=2)
    assert threaded.search(np.repeat(vectors, 9, axis=0))[0].shape == (9000,)


def test_a_vector_that_is_a_center_is_at_distance_zero() -> None:
    vectors = np.random.default_rng(2).normal(size=(1000, 32)).astype(np.float32)
    fine, squared = NearestCenters(vectors[:300]).search(vectors)
    np.testing.assert_array_equal(fine[:300], np.arange(300))
    np.testing.assert_array_equal(squared[:300], 0.0)
    assert squared.min() >= 0.0


@pytest.mark.parametrize("priced", [False, True])
def test_candidates_are_all_centers_in_reach_and_no_others(priced: bool) -> None:
    rng = np.random.default_rng(3)
    vectors, centers = rng.normal(size=(200, 16)).astype(np.float32), rng.normal(size=(70, 16)).astype(np.float32)
    prices = rng.normal(size=70) if priced else np.zeros(70)
    search = NearestCenters(centers, prices)
    fine, squared, count = search.candidates(vectors, reach=3.0, width=70)
    totals = np.square(vectors[:, None].astype(np.float64) - centers[None]).sum(axis=2) + prices
    for row in range(200):
        expected = set(np.flatnonzero(totals[row] <= totals[row].min() + 3.0))
        assert set(fine[row, : count[row]].tolist()) == expected
        assert fine[row, 0] == totals[row].argmin()
        np.testing.assert_allclose(
            squared[row, : count[row]] + prices[fine[row, : count[row]]],
            totals[row, fine[row, : count[row]]],
            rtol=1e-4,
        )
    narrow, _, few = search.candidates(vectors, reach=3.0, width=4)
    for row in range(200):
        best = np.argsort(totals[row])[: few[row]]
        assert set(narrow[row, : few[row]].tolist()) == set(best.tolist())
        assert few[row] == min(4, count[row])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_refused_with_their_row(bad: float) -> None:
    vectors = np.ones((10, 3), np.float32)
    vectors[7, 1] = bad
    with pytest.raises(ValueError, match="1 vectors are NaN or infinite, the first at row 7"):
        NearestCenters(np.eye(3, dtype=np.float32)).search(vectors)
    with pytest.raises(ValueError, match="center or price"):
        NearestCenters(vectors)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension 3"):
        NearestCenters(np.eye(3, dtype=np.float32)).search(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="prices"):
        NearestCenters(np.eye(3, dtype=np.float32), np.zeros(2))


def test_no_rows_give_no_rows() -> None:
    fine, squared = NearestCenters(np.eye(3, dtype=np.float32)).search(np.empty((0, 3), np.float32))
    assert fine.shape == squared.shape == (0,)


def test_missing_faiss_is_one_sentence_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"pip install 'mode_ray\[cpu\]'"):
        nearest.import_faiss()
