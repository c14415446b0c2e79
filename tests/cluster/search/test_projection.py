"""Projected distances are lower bounds of the true ones, for any vectors."""

import numpy as np
import pytest
import torch

from mode_ray.cluster.search.projection import CANDIDATES_SHARES, CENTERS_SHARES, ROWS_SHARES, Projection

TOLERANCE = 1e-5


def unit_rows(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Unit vectors with most of their variance on few axes, and a mean other than 0."""
    generator = np.random.default_rng(seed)
    scale = 1.0 / np.arange(1, dimension + 1)
    vectors = 0.3 + generator.standard_normal((rows, dimension)) * scale
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(left[:, None].astype(np.float64) - right[None]).sum(axis=2))


def projected(projection: Projection, vectors: np.ndarray) -> np.ndarray:
    return projection.project(torch.from_numpy(vectors)).numpy()


@pytest.mark.parametrize("shares", [(0.05, 0.1), ROWS_SHARES, CANDIDATES_SHARES, CENTERS_SHARES])
def test_no_projected_distance_exceeds_the_true_one(shares: tuple[float, float]) -> None:
    rows = unit_rows(400, 64)
    # Vectors that the axes were not made for are bounded just as well.
    others = np.concatenate([rows[:50], unit_rows(100, 64, seed=1), -rows[:20], np.eye(64, dtype=np.float32)])
    projection = Projection.fit(rows, shares)
    bounds = squared_distances(projected(projection, rows), projected(projection, others))
    true = squared_distances(rows, others)
    assert (bounds <= true + TOLERANCE).all()
    assert bounds.mean() > shares[1] / 2 * true.mean()


def test_more_axes_bound_closer_and_all_of_them_give_the_distance_itself() -> None:
    rows = unit_rows(300, 40)
    true = squared_distances(rows, rows)
    fits = [Projection.fit(rows, (0.5, share)) for share in (0.5, 0.9, 1.0)]
    means = [squared_distances(projected(fit, rows), projected(fit, rows)).mean() for fit in fits]
    assert means == sorted(means)
    whole = Projection.fit(rows, (0.5, 1.0))
    assert whole.dimension == 41
    np.testing.assert_allclose(squared_distances(projected(whole, rows), projected(whole, rows)), true, atol=TOLERANCE)


def test_the_axes_are_orthonormal_and_come_in_steps_of_eight() -> None:
    for dimension in (5, 40, 64):
        projection = Projection.fit(unit_rows(300, dimension), ROWS_SHARES)
        axes = projection.axes_dr.numpy()
        np.testing.assert_allclose(axes.T @ axes, np.eye(axes.shape[1]), atol=1e-6)
        assert projection.dimension == axes.shape[1] + 1
        assert axes.shape[1] == dimension or axes.shape[1] % 8 == 0


def test_rows_that_are_all_alike_leave_a_bound_that_holds() -> None:
    rows = np.repeat(unit_rows(1, 16), 50, axis=0)
    projection = Projection.fit(rows, ROWS_SHARES)
    assert np.isfinite(projected(projection, rows)).all()
    others = unit_rows(30, 16, seed=2)
    bounds = squared_distances(projected(projection, rows), projected(projection, others))
    assert (bounds <= squared_distances(rows, others) + TOLERANCE).all()


def test_one_row_is_enough() -> None:
    row = unit_rows(1, 8)
    projection = Projection.fit(row, CENTERS_SHARES)
    assert squared_distances(projected(projection, row), projected(projection, row))[0, 0] <= TOLERANCE


def test_half_precision_rows_are_taken_too() -> None:
    rows = unit_rows(100, 32)
    half = Projection.fit(rows.astype(np.float16), ROWS_SHARES)
    assert half.axes_dr.dtype == half.mean_d.dtype == torch.float32


def test_heads_bound_the_whole_and_their_tails_make_up_the_difference() -> None:
    rows = unit_rows(300, 64)
    projection = Projection.fit(rows, (0.8, 0.999))
    assert 0 < projection.head < projection.axes_dr.shape[1]
    whole = projected(projection, rows)
    heads, tails = (part.numpy() for part in projection.split(torch.from_numpy(whole)))
    assert (heads.shape[1], tails.shape[1]) == (projection.head + 1, projection.dimension - projection.head)
    by_heads, by_all = squared_distances(heads, heads), squared_distances(whole, whole)
    assert (by_heads <= by_all + TOLERANCE).all()
    lengths = np.square(heads[:, None, -1] - heads[None, :, -1])
    np.testing.assert_allclose(by_heads - lengths + squared_distances(tails, tails), by_all, atol=TOLERANCE)
