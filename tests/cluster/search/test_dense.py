"""The search for GPUs, on tensors in main memory: candidates in bfloat16, results as of the search on CPUs."""

import numpy as np
import pytest
import torch

from mode_ray.cluster.search.dense import DenseSearch
from mode_ray.cluster.search.nearest import NearestCenters

CPU = torch.device("cpu")


def unit_rows(rng: np.random.Generator, shape: tuple[int, int], around: np.ndarray | None = None) -> np.ndarray:
    """Unit vectors in float16, as embeddings are stored; without `around`, uniform on the sphere."""
    rows = rng.normal(size=shape) if around is None else around + 0.6 / shape[1] ** 0.5 * rng.normal(size=shape)
    halves: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return halves


@pytest.mark.parametrize("priced", [False, True])
def test_ids_and_distances_are_those_of_the_search_on_cpus(priced: bool) -> None:
    rng = np.random.default_rng(0)
    centers = unit_rows(rng, (600, 64)).astype(np.float32)
    vectors = unit_rows(rng, (20_000, 64), centers[rng.integers(0, 600, 20_000)].astype(np.float64))
    prices = rng.normal(size=600) * 0.02 if priced else None
    fine, squared = NearestCenters(centers, prices).search(vectors)
    dense_fine, dense_squared = DenseSearch(centers, prices, CPU).search(vectors)
    assert dense_fine.dtype == np.int32
    assert dense_squared.dtype == np.float32
    assert (dense_fine == fine).mean() >= 0.9999
    np.testing.assert_allclose(dense_squared, squared, atol=1e-5)


def test_centers_closer_than_bfloat16_resolves_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    center = unit_rows(rng, (1, 32)).astype(np.float32)
    centers = center + np.linspace(0.0, 1e-3, 200, dtype=np.float32)[:, None]
    vectors = centers[[0, 57, 111, 199]]
    assert DenseSearch(centers, None, CPU).search(vectors)[0].tolist() == [0, 57, 111, 199]


def test_equal_centers_are_a_tie_for_the_lowest_id() -> None:
    rng = np.random.default_rng(1)
    centers = unit_rows(rng, (50, 16)).astype(np.float32)
    centers[[12, 24, 36]] = centers[12]
    assert set(DenseSearch(centers, None, CPU).search(np.repeat(centers[[36]], 9, axis=0))[0].tolist()) == {12}


def test_candidates_are_all_centers_within_reach_up_to_the_width() -> None:
    rng = np.random.default_rng(2)
    centers, vectors = unit_rows(rng, (300, 24)).astype(np.float32), unit_rows(rng, (500, 24))
    prices = rng.normal(size=300) * 0.05
    expected, expected_squared, expected_count = NearestCenters(centers, prices).candidates(vectors, 0.3, 16)
    fine, squared, count = DenseSearch(centers, prices, CPU).candidates_tensor(torch.from_numpy(vectors), 0.3, 16)
    np.testing.assert_array_equal(count.numpy(), expected_count)
    assert count.min() < 16 == count.max()
    for row in range(len(vectors)):
        found = dict(zip(fine[row, : count[row]].tolist(), squared[row, : count[row]].tolist(), strict=True))
        filled = slice(0, int(expected_count[row]))
        theirs = dict(zip(expected[row, filled].tolist(), expected_squared[row, filled].tolist(), strict=True))
        assert found == pytest.approx(theirs, abs=1e-5)


def test_bad_input_is_refused() -> None:
    search = DenseSearch(np.eye(3, dtype=np.float32), None, CPU)
    vectors = np.zeros((5, 3), np.float32)
    vectors[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 vectors are NaN or infinite, the first at row 3"):
        search.search(vectors)
    with pytest.raises(ValueError, match="do not fit centers of dimension 3"):
        search.search(np.ones((2, 4), np.float32))
    assert len(search.search(np.empty((0, 3), np.float32))[0]) == 0
