"""The map: discs in the unit square that do not overlap, similar clusters near each other, the same every time."""

import numpy as np
import pytest
import scipy.spatial

from mode_ray.atlas.layout import MAX_LANDMARKS, layout_map


def blobs(groups: int, each: int, dimension: int = 16) -> np.ndarray:
    generator = np.random.default_rng(0)
    middles = generator.normal(size=(groups, dimension))
    points = np.repeat(middles, each, axis=0) + 0.15 * generator.normal(size=(groups * each, dimension))
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), dtype=np.float32)


def agreement(places: np.ndarray, each: int) -> float:
    """Share of the three nearest neighbours on the map that are of the same blob."""
    _, nearest = scipy.spatial.KDTree(places).query(places, k=4)
    return float((np.asarray(nearest)[:, 1:] // each == np.arange(len(places))[:, None] // each).mean())


def test_neighbours_on_the_map_are_of_the_same_group() -> None:
    places, _ = layout_map(blobs(8, 16), np.full(128, 1 / 128))
    assert agreement(places, 16) > 0.9


def test_discs_are_in_the_square_and_hardly_overlap() -> None:
    share = np.random.default_rng(1).gamma(2.0, size=200)
    share /= share.sum()
    places, radius = layout_map(blobs(10, 20), share)
    assert (places - radius[:, None]).min() >= -1e-9
    assert (places + radius[:, None]).max() <= 1 + 1e-9
    apart = scipy.spatial.distance.cdist(places, places) - radius[:, None] - radius
    np.fill_diagonal(apart, 1)
    assert (apart < -0.25 * radius.min()).sum() <= 4
    assert np.allclose(radius**2 / radius.max() ** 2, np.maximum(share, 0.05 / 200) / share.max())


def test_the_same_input_gives_the_same_map() -> None:
    first, second = (layout_map(blobs(4, 8), np.full(32, 1 / 32)) for _ in range(2))
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_few_or_equal_centers_have_places_too(m: int) -> None:
    for centers in (np.eye(m, 6, dtype=np.float32), np.ones((m, 6), np.float32)):
        places, radius = layout_map(centers, np.full(m, 1 / m))
        assert np.isfinite(places).all()
        assert (radius > 0).all()
        assert len(np.unique(places.round(4), axis=0)) == m


def test_other_centers_are_near_their_nearest_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_LANDMARKS >= 1024
    monkeypatch.setattr("mode_ray.atlas.layout.MAX_LANDMARKS", 120)
    share = np.tile([1.5, 0.5], 120) / 240
    places, _ = layout_map(blobs(6, 40), share)
    assert agreement(places, 40) > 0.9
