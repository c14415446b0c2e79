from typing import Any

import faiss
import numpy as np
import pytest

from mode_ray.cluster.fit import kmeans
from mode_ray.cluster.fit.balance import row_hashes
from mode_ray.cluster.fit.kmeans import FineFit, early_steps, fit_fine, fit_rows
from mode_ray.cluster.fit.sample_rows import LocalRows, chosen_rows
from mode_ray.cluster.fit.seeding import InitMethod, initial_centers
from mode_ray.cluster.fit.sizes import imbalance_factor, max_over_mean
from mode_ray.cluster.fit.state import FitState
from mode_ray.cluster.fit.sums import PartialSums, update_centers
from mode_ray.cluster.search.nearest import Float32Array, NearestCenters
from mode_ray.config.cluster import FineConfig
from mode_ray.errors import DataError


def sphere_mixture(
    rows: int, dimension: int = 64, components: int = 40, noise: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around `components` directions with sizes of a power law."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(components, dimension))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    share = 1.0 / np.arange(1, components + 1)
    label = rng.choice(components, rows, p=share / share.sum())
    vectors = means[label] + noise / np.sqrt(dimension) * rng.normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), label


def lloyd_step(rows: np.ndarray, centers: Float32Array) -> PartialSums:
    return LocalRows(rows).nearest_sums(centers)


def first_centers(rows: np.ndarray, m: int, method: InitMethod) -> Float32Array:
    return initial_centers(LocalRows(rows), row_hashes(rows), m, method, np.random.default_rng(0))


def test_two_points_a_side_have_known_means() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]], np.float32)
    sums = lloyd_step(rows, np.array([[1, 1], [9, 1]], np.float32))
    np.testing.assert_array_equal(sums.counts_m, [2, 2])
    np.testing.assert_array_equal(sums.sums_md, [[0, 2], [20, 2]])
    np.testing.assert_allclose(sums.squared_distance_m, [4, 4])
    centers, donors = update_centers(sums, np.zeros((2, 2), np.float32), spherical=False)
    np.testing.assert_array_equal(centers, [[0, 1], [10, 1]])
    np.testing.assert_array_equal(donors, [0, 1])


def test_sums_have_the_same_bits_for_any_distribution_of_the_rows() -> None:
    rows, _ = sphere_mixture(1000)
    centers = rows[:20]
    whole = lloyd_step(rows, centers)
    for work_units in (2, 3, 7):
        merged = PartialSums.merge(lloyd_step(part, centers) for part in np.array_split(rows, work_units)[::-1])
        np.testing.assert_array_equal(merged.sums_md, whole.sums_md)
        np.testing.assert_array_equal(merged.counts_m, whole.counts_m)
        np.testing.assert_array_equal(merged.squared_distance_m, whole.squared_distance_m)
    with pytest.raises(ValueError, match="no partial sums"):
        PartialSums.merge([])


def test_updated_sums_equal_sums_of_all_rows() -> None:
    rows, _ = sphere_mixture(2000)
    sample = LocalRows(rows)
    for first in (0, 20, 40, 0):
        centers = rows[first : first + 20]
        kept, recomputed = sample.nearest_sums(centers), lloyd_step(rows, centers)
        np.testing.assert_array_equal(kept.sums_md, recomputed.sums_md)
        np.testing.assert_array_equal(kept.counts_m, recomputed.counts_m)


def test_objective_equals_faiss_kmeans_from_the_same_start() -> None:
    rows = sphere_mixture(5000)[0].astype(np.float16).astype(np.float32)
    start = first_centers(rows, 32, "random")
    peer = faiss.Kmeans(64, 32, niter=12, max_points_per_centroid=10**6, min_points_per_centroid=1)
    peer.train(rows, init_centroids=start)
    centers, inertia = start, []
    for _ in range(12):
        sums = lloyd_step(rows, centers)
        inertia.append(sums.inertia)
        centers, _ = update_centers(sums, centers, spherical=False)
    np.testing.assert_allclose(np.asarray(inertia), np.asarray(peer.obj), rtol=1e-4)


def test_an_empty_cluster_takes_half_of_the_largest() -> None:
    rows = np.concatenate([np.full((30, 2), 1.0), np.full((10, 2), 5.0)]) + np.random.default_rng(0).normal(
        scale=0.01, size=(40, 2)
    )
    centers = np.array([[1, 1], [5, 5], [90, 90]], np.float32)
    sums = lloyd_step(rows, centers)
    moved, donors = update_centers(sums, centers, spherical=False)
    np.testing.assert_array_equal(donors, [0, 1, 0])
    assert np.isfinite(moved).all()
    assert (lloyd_step(rows, moved).counts_m > 0).all()


def test_spherical_centers_have_unit_length() -> None:
    rows, _ = sphere_mixture(500)
    fit = fit_fine(rows, FineConfig(centers=8, spherical=True, balanced=False, iterations=5), 0, 1)
    np.testing.assert_allclose(np.linalg.norm(fit.centers_md, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("method", ["kmeans++", "random"])
def test_first_centers_are_distinct_rows(method: InitMethod) -> None:
    rows = np.repeat(sphere_mixture(40)[0].astype(np.float16).astype(np.float32), 25, axis=0)
    centers = first_centers(rows, 40, method)
    assert len(np.unique(centers, axis=0)) == 40
    assert {row.tobytes() for row in centers} <= {row.tobytes() for row in rows}
    with pytest.raises(ValueError, match="40 distinct rows"):
        first_centers(rows, 41, method)


def test_plus_plus_finds_every_planted_cluster() -> None:
    rows, label = sphere_mixture(4000, components=20, noise=0.1)
    fit = fit_fine(rows, FineConfig(centers=20, balanced=False), 0, 1)
    np.testing.assert_array_equal(np.sort(fit.mass_m), np.sort(np.bincount(label, minlength=20)))
    assert fit.history[-1].inertia <= fit.history[0].inertia


@pytest.mark.parametrize(("rows", "m"), [(15_360, 32), (5_120, 64)])
def test_balanced_fit_reaches_the_targets(rows: int, m: int) -> None:
    vectors, _ = sphere_mixture(rows)
    plain = fit_fine(vectors, FineConfig(centers=m, balanced=False), 0, 2)
    balanced = fit_fine(vectors, FineConfig(centers=m, iterations=12), 0, 2)
    assert max_over_mean(plain.mass_m) > 1.6
    assert max_over_mean(balanced.fitted_mass_m) <= 1.25
    assert imbalance_factor(balanced.fitted_mass_m) <= 1.02
    assert balanced.fitted_inertia <= 1.05 * plain.fitted_inertia
    # The figures of the fit equal those computed from its centers and prices.
    halves = vectors.astype(np.float16)
    for prices, mass in ((balanced.prices_m, balanced.fitted_mass_m), (None, balanced.mass_m)):
        fine, _ = NearestCenters(balanced.centers_md, prices).search(halves)
        np.testing.assert_array_equal(np.bincount(fine, minlength=m), mass)


class TestMissedBalance:
    """A balanced fit that misses its targets after `iterations` continues, to a bound."""

    CONFIG = FineConfig(centers=48)

    @pytest.fixture(scope="class")
    def vectors(self) -> np.ndarray:
        # Many small groups of captions: the prices of the first 20 iterations overshoot.
        return sphere_mixture(1500, components=300, noise=0.5)[0]

    @pytest.fixture(scope="class")
    def fitted(self, vectors: np.ndarray) -> tuple[FineFit, list[FitState]]:
        states: list[FitState] = []
        return fit_rows(LocalRows(vectors, 2), self.CONFIG, 0, states.append), states

    def test_the_fit_continues_until_the_targets_are_met(self, fitted: tuple[FineFit, list[FitState]]) -> None:
        fit, states = fitted
        assert fit.history[19].max_over_mean > 1.25, "the case: missed after 20 iterations"
        assert fit.extended_from == 20
        assert 22 <= len(fit.history) <= 40
        assert [state.extended_from for state in states[18:22]] == [None, None, 20, 20]
        assert max_over_mean(fit.fitted_mass_m) <= 1.25
        assert imbalance_factor(fit.fitted_mass_m) <= 1.02
        assert fit.balance_score is not None
        assert fit.balance_score <= 1.0

    def test_it_resumes_within_the_further_iterations_to_the_same_bits(
        self, vectors: np.ndarray, fitted: tuple[FineFit, list[FitState]]
    ) -> None:
        whole, states = fitted
        for state in (states[19], states[21]):
            resumed = fit_rows(LocalRows(vectors), self.CONFIG, 0, state=state)
            np.testing.assert_array_equal(resumed.centers_md, whole.centers_md)
            np.testing.assert_array_equal(resumed.prices_m, whole.prices_m)
            assert resumed.history == whole.history

    def test_groups_of_captions_far_from_all_others_are_balanced_too(self) -> None:
        vectors, _ = sphere_mixture(1500, dimension=32, noise=0.2)
        fit = fit_fine(vectors, FineConfig(centers=32), 0, 2)
        assert fit.history[19].max_over_mean > 8.0
        assert max_over_mean(fit.fitted_mass_m) <= 1.25

    def test_what_cannot_be_balanced_ends_and_says_so(self) -> None:
        rows = np.repeat(np.eye(13, dtype=np.float32), 50, axis=0)  # 12 clusters of 13 captions: one has two of them
        fit = fit_fine(rows, FineConfig(centers=12, iterations=5), 0, 1)
        assert fit.balance_score is not None
        assert fit.balance_score > 1.0
        assert len(fit.history) <= 10

    def test_a_fit_in_balance_does_not_continue(self) -> None:
        fit = fit_fine(sphere_mixture(5_120)[0], FineConfig(centers=64, iterations=12), 0, 2)
        assert (fit.extended_from, len(fit.history)) == (None, 12)


def test_prices_stay_bounded_if_one_caption_exceeds_a_fair_share() -> None:
    vectors, _ = sphere_mixture(2000)
    vectors = np.concatenate([vectors, np.repeat(vectors[:1], 1000, axis=0)])
    fit = fit_fine(vectors, FineConfig(centers=16), 0, 1)
    assert fit.rows - fit.distinct_rows == 1000
    others = np.sort(fit.fitted_mass_m)[:-1]
    assert max_over_mean(others) <= 1.25
    assert np.abs(fit.prices_m).max() < 4.0


def test_balance_is_free_of_scale() -> None:
    vectors, _ = sphere_mixture(3000)
    config = FineConfig(centers=16, iterations=6)
    small, large = fit_fine(vectors, config, 0, 1), fit_fine(vectors * 1024, config, 0, 1)
    np.testing.assert_allclose(large.prices_m, small.prices_m * 1024**2, rtol=1e-3, atol=1e-2)


def test_the_same_seed_gives_the_same_fit() -> None:
    vectors, _ = sphere_mixture(1500)
    config = FineConfig(centers=24, iterations=4)
    one, two = (fit_fine(vectors, config, 3, 2) for _ in range(2))
    np.testing.assert_array_equal(one.centers_md, two.centers_md)
    np.testing.assert_array_equal(one.prices_m, two.prices_m)


@pytest.mark.parametrize("balanced", [False, True])
def test_an_interrupted_fit_resumes_to_the_same_bits(balanced: bool) -> None:
    vectors, _ = sphere_mixture(1500)
    config = FineConfig(centers=24, iterations=6, balanced=balanced, tolerance=0.0)
    states: list[FitState] = []
    whole = fit_rows(LocalRows(vectors), config, 3, states.append)
    resumed = fit_rows(LocalRows(vectors), config, 3, state=states[2])
    np.testing.assert_array_equal(resumed.centers_md, whole.centers_md)
    np.testing.assert_array_equal(resumed.prices_m, whole.prices_m)
    np.testing.assert_array_equal(resumed.fitted_mass_m, whole.fitted_mass_m)
    assert resumed.history == whole.history


class TestEarlySteps:
    ROWS, M = 6_400, 16

    def test_samples_of_many_rows_a_center_have_them(self) -> None:
        plain, balanced = (FineConfig(centers=self.M, balanced=balanced) for balanced in (False, True))
        assert [early_steps(rows, plain) for rows in (self.ROWS, self.ROWS - 1)] == [5, 0]
        assert early_steps(self.ROWS, balanced) == 0

    def test_they_read_the_same_quarter_in_any_distribution(self) -> None:
        rows, _ = sphere_mixture(self.ROWS)
        rows[1::2] = rows[0]
        sample, centers = LocalRows(rows), rows[: 2 * self.M : 2]
        whole = sample.nearest_sums(centers, 4)
        merged = PartialSums.merge(LocalRows(part).nearest_sums(centers, 4) for part in np.array_split(rows, 3))
        np.testing.assert_array_equal(merged.sums_md, whole.sums_md)
        chosen = chosen_rows(sample.hashes(), 4)
        assert len(set(chosen[1::2])) == 1, "equal rows are chosen together"
        assert 0.2 < chosen[::2].mean() < 0.3
        np.testing.assert_array_equal(lloyd_step(rows[chosen], centers).sums_md, whole.sums_md)
        np.testing.assert_array_equal(sample.nearest_sums(centers).sums_md, lloyd_step(rows, centers).sums_md)

    def test_the_objective_is_that_of_steps_on_all_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows, _ = sphere_mixture(self.ROWS)
        config = FineConfig(centers=self.M, balanced=False)
        early = fit_fine(rows, config, 0, 1)
        monkeypatch.setattr(kmeans, "EARLY_ROWS_PER_CENTER", self.ROWS)
        assert early.fitted_inertia == pytest.approx(fit_fine(rows, config, 0, 1).fitted_inertia, rel=0.01)

    def test_a_fit_that_is_interrupted_in_one_resumes_to_the_same_bits(self) -> None:
        rows, _ = sphere_mixture(self.ROWS)
        config, states = FineConfig(centers=self.M, iterations=8, balanced=False), list[FitState]()
        whole = fit_rows(LocalRows(rows), config, 3, states.append)
        resumed = fit_rows(LocalRows(rows), config, 3, state=states[0])
        np.testing.assert_array_equal(resumed.centers_md, whole.centers_md)
        assert resumed.history == whole.history


def test_threads_do_not_change_a_fit() -> None:
    vectors, _ = sphere_mixture(3000)
    config = FineConfig(centers=24, iterations=4)
    one, two = (fit_fine(vectors, config, 3, threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.centers_md, two.centers_md)
    np.testing.assert_array_equal(one.prices_m, two.prices_m)


def test_iterations_are_reported_as_they_happen() -> None:
    seen: list[Any] = []
    config = FineConfig(centers=8, iterations=3, tolerance=0.0)
    fit = fit_rows(LocalRows(sphere_mixture(400)[0]), config, 0, lambda state: seen.append(state.history[-1]))
    assert seen == list(fit.history)
    assert [report.iteration for report in seen] == [1, 2, 3]
    assert fit.rows == fit.mass_m.sum() == fit.fitted_mass_m.sum() == 400


def test_too_few_distinct_captions_name_both_numbers_and_the_fix() -> None:
    rows = np.repeat(np.eye(5, dtype=np.float32), 100, axis=0)
    with pytest.raises(DataError, match=r"5 distinct embeddings \(500 rows\) for 6 fine centers.*fine.centers"):
        fit_fine(rows, FineConfig(centers=6), 0, 1)
    assert (fit_fine(rows, FineConfig(centers=5), 0, 1).mass_m == 100).all()


def test_bad_rows_are_refused() -> None:
    rows = np.ones((10, 2), np.float32)
    rows[3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_fine(rows, FineConfig(centers=1), 0, 1)
