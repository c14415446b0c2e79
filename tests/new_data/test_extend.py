"""New centers are appended; the parent is unchanged."""

import numpy as np
import pytest

from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.search.nearest import NearestCenters
from mode_ray.config.cluster import ClusterConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.new_data.new_centers import FarCaptions, NewCenters, check_new_expert, extended, fit_new_centers
from mode_ray.storage import Location


@pytest.fixture
def parent() -> Clustering:
    """Four centers; the centroid of expert 0 of 2 is (0, 0.5), that of expert 1, weighted by mass, (10, 0.1)."""
    return Clustering(
        centers_md=np.array([[0, 0], [0, 1], [10, 0], [10, 1]], np.float32),
        prices_m=np.array([0.1, -0.1, 0.2, -0.2]),
        mass_m=np.array([10, 10, 90, 10]),
        squared_distance_m=np.array([1.0, 2.0, 3.0, 4.0]),
        encoder_name="encoder-a",
        coarse={1: np.zeros(4, np.int32), 2: np.array([0, 0, 1, 1], np.int32), 4: np.arange(4, dtype=np.int32)},
        training={"sample_rows": 120, "squared_distance_quantiles": {"0.99": 0.5}},
    )


@pytest.fixture
def new() -> NewCenters:
    return NewCenters(
        centers_kd=np.array([[0, 9], [11, 5]], np.float32),
        prices_k=np.array([0.3, -0.3]),
        mass_k=np.array([6, 4]),
        squared_distance_k=np.array([0.6, 0.4]),
        fitted_rows=11,
        distinct_rows=11,
        rows_nearer_to_old=1,
    )


def test_the_parent_is_a_prefix_and_ids_continue(parent: Clustering, new: NewCenters) -> None:
    made = extended(parent, new, None, {})
    for name, appended in (
        ("centers_md", new.centers_kd),
        ("prices_m", new.prices_k),
        ("mass_m", new.mass_k),
        ("squared_distance_m", new.squared_distance_k),
    ):
        old, values = getattr(parent, name), getattr(made, name)
        assert values.dtype == old.dtype
        assert values[:4].tobytes() == old.tobytes()
        np.testing.assert_array_equal(values[4:], appended)
    for n, group in parent.coarse.items():
        assert made.coarse[n][:4].tobytes() == group.tobytes()
    assert set(made.coarse) == set(parent.coarse)


def test_new_centers_go_to_the_expert_with_the_nearest_centroid(parent: Clustering, new: NewCenters) -> None:
    made = extended(parent, new, None, {})
    assert made.coarse[1][4:].tolist() == [0, 0]
    assert made.coarse[2][4:].tolist() == [0, 1]
    assert made.coarse[4][4:].tolist() == [1, 3]


def test_the_centroid_is_weighted_by_mass() -> None:
    # The centroid of expert 0 is 0.04 by mass, so 5.5 is nearer to 10. By plain mean it would be 2, and nearer to 5.5.
    heavy = Clustering(
        centers_md=np.array([[0, 0], [4, 0], [10, 0]], np.float32),
        prices_m=np.zeros(3),
        mass_m=np.array([99, 1, 10]),
        squared_distance_m=np.zeros(3),
        encoder_name="e",
        coarse={2: np.array([0, 0, 1], np.int32)},
    )
    one = NewCenters(np.array([[5.5, 0]], np.float32), np.zeros(1), np.array([1]), np.zeros(1), 1, 1, 0)
    assert extended(heavy, one, None, {}).coarse[2].tolist() == [0, 0, 1, 1]


def test_an_expert_without_any_row_is_placed_by_its_plain_mean(parent: Clustering, new: NewCenters) -> None:
    empty = Clustering(
        parent.centers_md, parent.prices_m, np.zeros(4, np.int64), np.zeros(4), "e", {2: parent.coarse[2]}
    )
    assert extended(empty, new, None, {}).coarse[2][4:].tolist() == [0, 1]


def test_a_new_expert_has_exactly_the_new_centers_and_the_old_keep_their_numbers(
    parent: Clustering, new: NewCenters
) -> None:
    made = extended(parent, new, 2, {})
    assert made.coarse[3].tolist() == [0, 0, 1, 1, 2, 2]
    assert made.coarse[2].tolist() == [0, 0, 1, 1, 0, 1]
    assert made.masses(3).tolist() == [20, 100, 10]


def test_an_existing_map_is_not_replaced(parent: Clustering) -> None:
    tight = Clustering(
        parent.centers_md, parent.prices_m, parent.mass_m, parent.squared_distance_m, "e",
        {1: parent.coarse[1], 2: parent.coarse[2]},
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"already has a map for 2 experts.*set train.experts to 2"):
        check_new_expert(tight, 1)
    with pytest.raises(UsageError, match="no coarse map for n=8"):
        check_new_expert(parent, 8)


def test_extensions_are_recorded_in_order_with_the_parents_figures(parent: Clustering, new: NewCenters) -> None:
    once = extended(parent, new, None, {"run": "B"})
    twice = extended(once, new, None, {"run": "C"})
    assert twice.training["extensions"] == [{"run": "B"}, {"run": "C"}]
    assert twice.training["squared_distance_quantiles"] == {"0.99": 0.5}
    assert "extensions" not in parent.training


def test_an_extension_is_saved_and_loaded(parent: Clustering, new: NewCenters, tmp_path: object) -> None:
    made = extended(parent, new, 4, {"run": "B"})
    directory = Location.parse(str(tmp_path))
    made.save(directory)
    loaded = Clustering.load(directory)
    assert loaded.training["extensions"] == [{"run": "B"}]
    assert loaded.coarse[5].tolist() == [0, 1, 2, 3, 4, 4]


class TestFit:
    @pytest.fixture
    def far(self) -> np.ndarray:
        """Rows in two places far from the parent's centers, and one that has an old center nearest."""
        rng = np.random.default_rng(0)
        places = np.array([[0, 50], [50, 0]])[np.arange(200) % 2]
        rows = np.concatenate([places + rng.normal(0, 0.1, (200, 2)), [[10, 2.5]]])
        return np.asarray(rows, np.float32)

    @pytest.fixture
    def config(self) -> ClusterConfig:
        return ClusterConfig.model_validate({"fine": {"balanced": False}})

    def test_only_rows_nearer_to_a_new_center_count_for_it(
        self, parent: Clustering, far: np.ndarray, config: ClusterConfig
    ) -> None:
        fit = fit_new_centers(parent, far, FarCaptions(1000, 201, 0.99, 0.5), 2, config)
        assert sorted(fit.mass_k.tolist()) == [100, 100]
        assert (fit.fitted_rows, fit.rows_nearer_to_old) == (201, 1)
        made = extended(parent, fit, None, {})
        fine, distance = NearestCenters(made.centers_md).search(far[:-1])
        np.testing.assert_array_equal(np.bincount(fine - 4), fit.mass_k)
        np.testing.assert_allclose(np.bincount(fine - 4, distance), fit.squared_distance_k, rtol=1e-5)

    def test_rows_that_are_not_nearer_to_a_new_center_keep_theirs(
        self, parent: Clustering, far: np.ndarray, config: ClusterConfig
    ) -> None:
        fit = fit_new_centers(parent, far, FarCaptions(1000, 201, 0.99, 0.5), 2, config)
        made = extended(parent, fit, None, {})
        rows = np.random.default_rng(1).uniform(-5, 60, (2000, 2)).astype(np.float32)
        before, before_distance = NearestCenters(parent.centers_md).search(rows)
        after, after_distance = NearestCenters(made.centers_md).search(rows)
        moved = after >= 4
        assert 0 < moved.sum() < len(rows)
        np.testing.assert_array_equal(after[~moved], before[~moved])
        np.testing.assert_array_equal(after_distance[~moved], before_distance[~moved])
        assert (after_distance[moved] <= before_distance[moved]).all()

    def test_too_few_distinct_captions_are_an_error_with_the_fix(
        self, parent: Clustering, config: ClusterConfig
    ) -> None:
        same = np.tile(np.array([[0, 50], [50, 0], [50, 50]], np.float32), (10, 1))
        with pytest.raises(DataError) as caught:
            fit_new_centers(parent, same, FarCaptions(1000, 30, 0.99, 0.5), 4, config)
        said = str(caught.value)
        assert "30 of 1,000 captions are far (squared distance above 0.5000), at most 3 of them distinct" in said
        assert "too few for 4 new centers. Lower --centers or --far-quantile" in said
