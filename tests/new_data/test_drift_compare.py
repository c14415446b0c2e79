"""The drift report: growth with its significance, and conclusions as sentences."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from terminal import shown_at_80_columns

from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError
from mode_ray.new_data.compare import DriftReport, compare, growth
from mode_ray.new_data.table import drift_view
from mode_ray.new_data.tally import AssignmentTally

QUANTILES = {"0.5": 0.4, "0.99": 0.8}


@pytest.fixture
def clustering() -> Clustering:
    return Clustering(
        centers_md=np.eye(4, dtype=np.float32),
        prices_m=np.zeros(4),
        mass_m=np.array([2500, 2500, 2500, 2500]),
        squared_distance_m=np.ones(4),
        encoder_name="e",
        coarse={1: np.zeros(4, np.int32), 2: np.array([0, 0, 1, 1], np.int32)},
        training={"squared_distance_quantiles": QUANTILES},
    )


def report(clustering: Clustering, rows: list[int], far_share: float, priced: bool = False) -> DriftReport:
    """The report over rows of each cluster, a share of each far (0.9), the others at 0.4."""
    tally = AssignmentTally.empty(4)
    for cluster, count in enumerate(rows):
        distance = np.full(count, 0.4, np.float32)
        distance[: round(far_share * count)] = 0.9
        tally += AssignmentTally.count("u", np.full(count, cluster, np.int32), distance, 4, 0.8)
    return compare(clustering, tally, 0.99, priced)


class TestGrowth:
    def test_is_the_ratio_of_shares(self) -> None:
        made = growth([10, 30], [60, 20])
        assert made.growth == [3.0, 0.3333]

    def test_z_is_near_the_two_proportion_test_for_large_shares(self) -> None:
        made = growth([250, 750], [300, 700])
        pooled = 550 / 2000
        assert made.z[0] == pytest.approx(0.05 / np.sqrt(pooled * (1 - pooled) * 2 / 1000), rel=0.01)
        assert made.z[1] == -made.z[0]

    def test_z_of_equal_shares_has_unit_variance_at_any_share(self) -> None:
        rng = np.random.default_rng(0)
        shares = [0.002, 0.098, 0.9]
        z = [growth(rng.multinomial(10_000, shares), rng.multinomial(4_000, shares)).z for _ in range(1_000)]
        assert np.std(z, axis=0) == pytest.approx(np.ones(3), abs=0.1)

    def test_a_small_cluster_does_not_shout(self) -> None:
        small = growth([1, 9_999], [4, 9_996])
        large = growth([1_000, 9_000], [1_500, 8_500])
        assert small.growth[0] == 4.0
        assert small.certain() == []
        assert large.certain() == [0, 1]

    def test_a_cluster_without_training_rows_has_no_ratio_and_comes_first_when_certain(self) -> None:
        made = growth([0, 5_000, 5_000], [400, 2_000, 100])
        assert made.growth[0] is None
        assert made.certain()[0] == 0

    def test_no_rows_at_all(self) -> None:
        made = growth([0, 0], [0, 0])
        assert (made.growth, made.z) == ([None, None], [0.0, 0.0])


class TestCompare:
    def test_captions_as_the_fitted_ones_are_covered(self, clustering: Clustering) -> None:
        made = report(clustering, [250, 250, 250, 250], 0.012)
        assert made.verdict == [
            "1.2% of the new captions are far from every center (1.0% of the fitted sample). "
            "The centers still cover the new captions."
        ]
        assert made.imbalance_factor == made.training_imbalance_factor == 1.0
        assert all(value == 1.0 for value in made.experts["2"].growth)

    def test_far_captions_call_for_an_extension(self, clustering: Clustering) -> None:
        made = report(clustering, [1000, 1000, 1000, 1000], 0.083)
        assert made.far_rows == 4 * 83
        assert made.verdict == [
            "8.3% of the new captions are far from every center (1.0% of the fitted sample). "
            "Consider `mode-ray cluster extend`."
        ]

    def test_a_handful_of_far_captions_among_few_does_not(self, clustering: Clustering) -> None:
        assert "still cover" in report(clustering, [12, 12, 12, 12], 0.08).verdict[0]

    def test_an_expert_that_grew_and_uneven_clusters_are_said(self, clustering: Clustering) -> None:
        made = report(clustering, [100, 100, 100, 1700], 0.01)
        assert made.experts["2"].growth == [0.2, 1.8]
        assert "Expert 0 of 2 receives 10.0% of the new captions (50.0% of the fitted sample)." in made.verdict
        assert "Expert 1 of 2 receives 90.0% of the new captions (50.0% of the fitted sample)." in made.verdict
        assert made.imbalance_factor == pytest.approx(4 * (3 * 0.05**2 + 0.85**2))
        assert "The clusters are less even: imbalance factor 2.92 (1.00 in the fitted sample)." in made.verdict

    def test_the_verdict_mentions_prices(self, clustering: Clustering) -> None:
        assert "assigned with prices" in report(clustering, [9, 9, 9, 9], 0.0, priced=True).verdict[-1]

    def test_quantiles_are_compared_with_those_of_the_sample(self, clustering: Clustering) -> None:
        made = report(clustering, [100, 0, 0, 0], 0.0)
        assert made.training_quantiles == QUANTILES
        assert made.quantiles["0.5"] == pytest.approx(0.4, abs=3e-4)

    def test_nothing_assigned(self, clustering: Clustering) -> None:
        with pytest.raises(DataError, match="no caption is assigned"):
            report(clustering, [0, 0, 0, 0], 0.0)

    def test_the_report_is_json_and_a_table(self, clustering: Clustering) -> None:
        made = report(clustering, [100, 100, 100, 1700], 0.08)
        assert json.loads(json.dumps(asdict(made)))["clusters"]["rows"] == [100, 100, 100, 1700]
        shown = shown_at_80_columns(drift_view(made))
        for text in ("2 experts", "8.0%", "squared distance, quantile 0.99", "`mode-ray cluster extend`"):
            assert text in shown
