import numpy as np
import pytest

from mode_ray.cluster import coarse
from mode_ray.cluster.coarse import group_centers
from mode_ray.config.cluster import CoarseConfig


def random_centers(m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(m, 16)).astype(np.float32)
    return centers / np.linalg.norm(centers, axis=1, keepdims=True), rng.integers(50, 150, m)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("exact", [True, False])
def test_capacities_hold(n: int, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(coarse, "MAX_LINEAR_PROGRAM_VARIABLES", 0)
    centers, mass = random_centers(128)
    found = group_centers(centers, mass, n, CoarseConfig(slack=0.1), seed=0)
    load = np.bincount(found.group_m, weights=mass, minlength=n) / mass.sum()
    np.testing.assert_allclose(found.load_n, load)
    assert found.load_n.max() <= 1.1 / n + 1e-9
    assert found.load_n.min() > 0.0
    assert found.slack_used == 0.1
    assert (np.diff(found.load_n) <= 1e-12).all()


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64])
def test_every_n_from_one_uneven_fine_clustering_keeps_its_word(n: int) -> None:
    centers, _ = random_centers(256)
    mass = np.random.default_rng(1).gamma(2.0, 500.0, 256).astype(np.int64) + 1
    found = group_centers(centers, mass, n, CoarseConfig(slack=0.1), seed=0)
    load = np.bincount(found.group_m, weights=mass, minlength=n) / mass.sum()
    np.testing.assert_allclose(found.load_n, load)
    assert (load > 0.0).all()
    assert load.max() <= (1.0 + found.slack_used) / n + 1e-9
    heaviest = n * mass.max() / mass.sum() - 1.0
    assert found.slack_used <= max(0.1, heaviest) + 1e-9, "no more than the heaviest center needs"


def test_planted_groups_are_found() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(60) % 4
    centers = (10 * np.eye(4)[label] + rng.normal(scale=0.1, size=(60, 4))).astype(np.float32)
    found = group_centers(centers, np.ones(60), 4, CoarseConfig(), seed=0)
    assert {tuple(np.unique(label[found.group_m == group])) for group in range(4)} == {(0,), (1,), (2,), (3,)}
    assert found.cost < 0.1


def test_mass_decides_and_not_the_number_of_centers() -> None:
    # On a line, the first of nine centers holds half of all rows: it makes a group of its own.
    centers = np.arange(9, dtype=np.float32)[:, None]
    mass = np.array([8, 1, 1, 1, 1, 1, 1, 1, 1])
    found = group_centers(centers, mass, 2, CoarseConfig(slack=0.0), seed=0)
    np.testing.assert_array_equal(found.group_m, [0] + [1] * 8)


def test_a_center_heavier_than_the_capacity_widens_the_slack() -> None:
    centers, mass = random_centers(32)
    mass[5] = mass.sum()
    found = group_centers(centers, mass, 4, CoarseConfig(slack=0.1), seed=0)
    heavy = found.group_m[5]
    assert heavy == 0
    assert found.load_n[0] == pytest.approx(mass[5] / mass.sum(), abs=0.1)
    assert found.slack_used == pytest.approx(4 * found.load_n[0] - 1)
    assert found.slack_used > 1.0


def test_the_relaxation_is_no_worse_than_the_greedy_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    centers, mass = random_centers(96, seed=3)
    exact = group_centers(centers, mass, 6, CoarseConfig(), seed=0)
    monkeypatch.setattr(coarse, "MAX_LINEAR_PROGRAM_VARIABLES", 0)
    assert exact.cost <= group_centers(centers, mass, 6, CoarseConfig(), seed=0).cost


def test_one_group_and_as_many_groups_as_centers() -> None:
    centers, mass = random_centers(10)
    assert set(group_centers(centers, mass, 1, CoarseConfig(), 0).group_m.tolist()) == {0}
    each = group_centers(centers, mass, 10, CoarseConfig(), 0)
    assert sorted(each.group_m.tolist()) == list(range(10))
    assert each.cost == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_array_equal(mass[np.argsort(each.group_m)], np.sort(mass)[::-1])


def test_no_mass_at_all_counts_every_center_alike() -> None:
    centers, _ = random_centers(20)
    found = group_centers(centers, np.zeros(20), 4, CoarseConfig(), 0)
    assert np.bincount(found.group_m).max() <= 5
    np.testing.assert_allclose(found.load_n.sum(), 1.0)


def test_centers_without_rows_and_equal_centers_do_no_harm() -> None:
    centers, mass = random_centers(40)
    centers[10:20] = centers[10]
    mass[25:] = 0
    found = group_centers(centers, mass, 5, CoarseConfig(), 0)
    assert set(found.group_m.tolist()) == set(range(5))


def test_the_same_seed_gives_the_same_map() -> None:
    centers, mass = random_centers(64)
    one, two = (group_centers(centers, mass, 5, CoarseConfig(), seed=9) for _ in range(2))
    np.testing.assert_array_equal(one.group_m, two.group_m)


def test_impossible_requests_are_refused() -> None:
    centers, mass = random_centers(4)
    with pytest.raises(ValueError, match="n=5"):
        group_centers(centers, mass, 5, CoarseConfig(), 0)
    with pytest.raises(ValueError, match="mass"):
        group_centers(centers, -mass, 2, CoarseConfig(), 0)
