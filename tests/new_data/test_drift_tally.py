"""Tallies are exact counts that add up; quantiles come from a histogram to within a bin."""

import numpy as np
import pytest

from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.quantiles import training_quantiles
from mode_ray.errors import DataError, UsageError
from mode_ray.new_data.tally import HISTOGRAM_BINS, AssignmentTally, far_distance

BIN = 4.0 / HISTOGRAM_BINS


def clustering(training: dict[str, object]) -> Clustering:
    return Clustering(
        centers_md=np.eye(3, dtype=np.float32),
        prices_m=np.zeros(3),
        mass_m=np.array([50, 30, 20]),
        squared_distance_m=np.ones(3),
        encoder_name="e",
        coarse={1: np.zeros(3, np.int32)},
        training=training,
    )


def tally(fine: list[int], distance: list[float], far: float = 0.5) -> AssignmentTally:
    return AssignmentTally.count("u", np.array(fine, np.int32), np.array(distance, np.float32), 3, far)


def test_rows_and_far_rows_by_cluster() -> None:
    made = tally([0, 0, 2, 2, 2], [0.1, 0.6, 0.5, 0.51, 3.9])
    assert made.rows_m.tolist() == [2, 0, 3]
    assert made.far_m.tolist() == [1, 0, 2]
    assert (made.rows, made.far_rows) == (5, 3)


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    fine, distance = rng.integers(0, 3, 500).tolist(), (4 * rng.random(500)).tolist()
    whole = tally(fine, distance)
    parts = AssignmentTally.empty(3) + tally(fine[:120], distance[:120]) + tally(fine[120:], distance[120:])
    for name in ("rows_m", "far_m", "histogram_b"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999])
def test_quantiles_are_exact_to_within_a_bin(share: float) -> None:
    distance = np.random.default_rng(1).beta(4, 6, 20_000).astype(np.float32)
    made = tally([0] * len(distance), distance.tolist())
    exact = float(np.quantile(distance, share, method="inverted_cdf"))
    assert made.quantile(share) == pytest.approx(exact, abs=BIN)


def test_distances_a_little_beyond_the_range_count_in_the_last_bin() -> None:
    made = tally([0, 0], [4.0, 4.01])
    assert made.histogram_b[-1] == 2


@pytest.mark.parametrize(("fine", "distance"), [([3], [0.1]), ([-1], [0.1]), ([0], [float("nan")])])
def test_assignments_of_another_clustering_are_refused_by_their_unit(fine: list[int], distance: list[float]) -> None:
    with pytest.raises(DataError, match=r"unit u: its assignments do not fit the run's 3 centers"):
        tally(fine, distance)


def test_far_is_above_the_stored_quantile() -> None:
    made = clustering({"squared_distance_quantiles": {"0.99": 0.8, "0.5": 0.3}})
    assert training_quantiles(made) == {0.5: 0.3, 0.99: 0.8}
    assert far_distance(made, 0.99) == 0.8
    with pytest.raises(UsageError, match=r"drift.far_quantile=0.97: the clustering has the quantiles 0.5, 0.99"):
        far_distance(made, 0.97)


@pytest.mark.parametrize(
    "training",
    [{}, {"squared_distance_quantiles": {}}, {"squared_distance_quantiles": [0.5]}, {"squared_distance_quantiles": 3}],
)
def test_the_error_for_missing_quantiles_names_the_fix(training: dict[str, object]) -> None:
    with pytest.raises(DataError, match="run the cluster stage again with this version"):
        training_quantiles(clustering(training))
