"""The numbers here are worked out by hand from the formulas; the arithmetic stands in the comments."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.config.evaluate import RoutingConfig, RoutingRule
from mode_ray.embed.load import load_encoder
from mode_ray.errors import DataError, UsageError
from mode_ray.routing.weights import (
    ExpertCenters,
    mean_direction,
    nearest_centers,
    normalised_entropy,
    per_query_weights,
    routing_weights,
    top_centers,
)

# Text X = (1, 0) and text Y = (0, 1). Squared distances:
#   X: to (0.8, 0) 0.04, to (0, 0.5) 1.25, to (-1, 0) 4        -> nearest: center 0, expert 0
#   Y: to (0.8, 0) 1.64, to (0, 0.5) 0.25, to (-1, 0) 2        -> nearest: center 1, expert 1
X, Y = (1.0, 0.0), (0.0, 1.0)
CENTERS = np.array([[0.8, 0.0], [0.0, 0.5], [-1.0, 0.0]], dtype=np.float32)
GROUP = np.array([0, 1, 1])
TWO_EXPERTS = ExpertCenters(CENTERS, GROUP)
RULES = ("calibrated", "soft", "paper", "released", "uniform")


def texts(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def two_way(first: float, second: float) -> list[float]:
    """Softmax of two numbers, written out."""
    a, b = math.exp(first), math.exp(second)
    return [a / (a + b), b / (a + b)]


def random_task(n_texts: int, seed: int = 0) -> tuple[np.ndarray, ExpertCenters]:
    generator = np.random.default_rng(seed)
    embeddings = generator.standard_normal((n_texts, 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    centers = 0.5 * generator.standard_normal((12, 8))
    return embeddings.astype(np.float32), ExpertCenters(centers.astype(np.float32), np.arange(12) % 3)


def test_soft_sums_each_texts_distribution_over_an_experts_centers_and_takes_the_mean() -> None:
    config = RoutingConfig(rule="soft", temperature=1.0)
    # X: exp(-0.04) = 0.960789, exp(-1.25) = 0.286505, exp(-4) = 0.018316
    # expert 0: 0.960789 / 1.265610 = 0.759151
    x_first = math.exp(-0.04) / (math.exp(-0.04) + math.exp(-1.25) + math.exp(-4.0))
    # Y: exp(-1.64) = 0.193980, exp(-0.25) = 0.778801, exp(-2) = 0.135335
    # expert 0: 0.193980 / 1.108116 = 0.175054
    y_first = math.exp(-1.64) / (math.exp(-1.64) + math.exp(-0.25) + math.exp(-2.0))
    assert x_first == pytest.approx(0.759151, abs=1e-6)
    assert y_first == pytest.approx(0.175054, abs=1e-6)

    routed = routing_weights(texts(X, Y), TWO_EXPERTS, config)

    first = (x_first + y_first) / 2
    assert routed.weights_c == pytest.approx([first, 1 - first], abs=1e-6)
    assert routed.per_text_weights_lc is not None
    assert routed.per_text_weights_lc[:, 0] == pytest.approx([x_first, y_first], abs=1e-6)
    assert routed.nearest_fine_l.tolist() == [0, 1]
    assert routed.nearest_squared_distance_l == pytest.approx([0.04, 0.25], abs=1e-6)
    assert routed.rule == "soft"


def test_soft_is_the_same_for_a_text_once_or_three_hundred_times() -> None:
    config = RoutingConfig(rule="soft")
    once = routing_weights(texts(X), TWO_EXPERTS, config)
    often = routing_weights(texts(*[X] * 300), TWO_EXPERTS, config)
    assert often.weights_c == pytest.approx(once.weights_c, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "evidence"),
    [
        # All texts have distance 1 to the nearest center, and lambda is 1, so A = exp(-1) each.
        # Below 10 texts A is multiplied by exp(0.5 - sqrt(count)).
        (1, math.exp(-1.5)),  # 1 * exp(-1 + 0.5 - 1)
        (9, 9 * math.exp(-3.5)),  # 9 * exp(-1 + 0.5 - 3)
        (10, 10 * math.exp(-1.0)),
        (200, 200 * math.exp(-1.0)),
        # Above 200, lambda is divided by ln(count): 201 * exp(-ln 201) = 1.
        (201, 1.0),
    ],
)
def test_paper_counts_only_the_nearest_center_and_rescales_small_and_large_tasks(count: int, evidence: float) -> None:
    # Expert 1 owns the origin, expert 0 owns (-1, 0), which is nobody's nearest: softmax of (0, evidence).
    centers = np.array([[-1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    config = RoutingConfig(paper_lambda=1.0)
    routed = routing_weights(texts(*[X] * count), ExpertCenters(centers, np.array([0, 1])), config, "paper")
    # Relative, so that the small weight exp(-evidence) of a large task is tested too.
    assert routed.weights_c == pytest.approx(two_way(0.0, evidence), rel=1e-6)
    assert routed.per_text_weights_lc is None


def test_paper_has_lambda_two_tenths_by_default() -> None:
    # One X: exp(-0.04 / 0.2) * exp(0.5 - 1) = exp(-0.7)
    routed = routing_weights(texts(X), TWO_EXPERTS, RoutingConfig(), "paper")
    assert routed.weights_c == pytest.approx(two_way(math.exp(-0.7), 0.0), abs=1e-6)


def test_paper_takes_the_base_of_the_large_task_logarithm_from_the_config() -> None:
    # 1000 texts at distance 1: log10(1000) = 3, lambda = 0.5 / 3, A = exp(-6)
    # evidence: 1000 exp(-6) = 2.478752
    centers = np.array([[-1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    config = RoutingConfig(paper_lambda=0.5, large_task_log_base=10.0)
    routed = routing_weights(texts(*[X] * 1000), ExpertCenters(centers, np.array([0, 1])), config, "paper")
    assert routed.weights_c == pytest.approx(two_way(0.0, 2.478752), abs=1e-6)


def test_paper_on_a_mixed_task_of_ten() -> None:
    # 6 X and 4 Y: 6 exp(-0.04 / 0.2) = 6 * 0.818731 = 4.912385; 4 exp(-0.25 / 0.2) = 4 * 0.286505 = 1.146019
    # p(0) = 1 / (1 + exp(1.146019 - 4.912385)) = 1 / (1 + 0.023138) = 0.977385
    routed = routing_weights(texts(*[X] * 6, *[Y] * 4), TWO_EXPERTS, RoutingConfig(), "paper")
    assert routed.weights_c == pytest.approx(two_way(6 * math.exp(-0.2), 4 * math.exp(-1.25)), abs=1e-6)
    assert routed.weights_c[0] == pytest.approx(0.977385, abs=1e-5)


@pytest.mark.parametrize(
    ("count", "small_term", "sharpness"),
    [
        (1, math.exp(-0.5), 5.0),  # exp(0.5 - sqrt 1) = 0.606531
        (9, math.exp(-2.5), 5.0),  # exp(0.5 - sqrt 9) = 0.082085
        (10, 0.0, 5.0),
        (200, 0.0, 5.0),  # log10(max(10, 0)) = 1
        (201, 0.0, 5.0),  # log10(max(10, 1)) = 1: no jump here
        (300, 0.0, 10.0),  # log10(100) = 2
    ],
)
def test_released_adds_the_small_term_to_the_plain_distance(count: int, small_term: float, sharpness: float) -> None:
    # The plain distance of X to its nearest center is sqrt(0.04) = 0.2.
    evidence = count * math.exp(sharpness * (small_term - 0.2)) / 8
    routed = routing_weights(texts(*[X] * count), TWO_EXPERTS, RoutingConfig(), "released")
    assert routed.weights_c == pytest.approx(two_way(evidence, 0.0), rel=1e-5)


def test_released_on_two_texts() -> None:
    # a = exp(0.5 - sqrt 2) = exp(-0.914214) = 0.400832; distances 0.2 and 0.5
    # w = exp(5 * 0.200832) = 2.729620 and exp(5 * -0.099168) = 0.609052
    # p(0) = 1 / (1 + exp(-2.120568 / 8)) = 0.565882
    routed = routing_weights(texts(X, Y), TWO_EXPERTS, RoutingConfig(), "released")
    assert routed.weights_c[0] == pytest.approx(0.565882, abs=1e-5)


def test_uniform_gives_every_expert_the_same() -> None:
    routed = routing_weights(texts(X), ExpertCenters(CENTERS, np.array([0, 1, 3])), RoutingConfig(), "uniform")
    assert routed.weights_c.tolist() == [0.25] * 4
    assert routed.normalised_entropy == 1.0
    assert routed.nearest_fine_l.tolist() == [0]


def test_three_dimensional_distances_need_no_unit_centers() -> None:
    # Text (0, 0.6, 0.8); centers (0, 0, 0): 1; (0, 0.6, 0): 0.64; (0, 0, 2): 0.36 + 1.44 = 1.8
    centers = np.array([[0, 0, 0], [0, 0.6, 0], [0, 0, 2]], dtype=np.float32)
    fine, squared = nearest_centers(texts((0.0, 0.6, 0.8)), centers, 5)
    assert fine.tolist() == [[1, 0, 2]]
    assert squared[0] == pytest.approx([0.64, 1.0, 1.8], abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 9, 10, 200, 201])
def test_weights_are_a_distribution_whatever_the_order_of_texts(rule: RoutingRule, count: int) -> None:
    embeddings, centers = random_task(count)
    config = RoutingConfig()
    straight = routing_weights(embeddings, centers, config, rule)
    shuffled = routing_weights(embeddings[np.random.default_rng(1).permutation(count)], centers, config, rule)
    assert straight.weights_c.dtype == np.float64
    assert straight.weights_c.sum() == pytest.approx(1.0, abs=1e-12)
    assert (straight.weights_c >= 0).all()
    assert shuffled.weights_c == pytest.approx(straight.weights_c, abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_renaming_the_experts_renames_the_weights(rule: RoutingRule) -> None:
    embeddings, centers = random_task(20)
    config = RoutingConfig()
    weights = routing_weights(embeddings, centers, config, rule).weights_c
    renamed = routing_weights(
        embeddings, replace(centers, group_m=np.array([2, 0, 1])[centers.group_m]), config, rule
    ).weights_c
    assert renamed[[2, 0, 1]] == pytest.approx(weights, abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_per_query_weights_treat_every_text_as_its_own_task(rule: RoutingRule) -> None:
    embeddings, centers = random_task(15)
    config = RoutingConfig()
    weights_lc = per_query_weights(embeddings, replace(centers, n=4), config, rule)
    alone = [routing_weights(embeddings[[row]], replace(centers, n=4), config, rule).weights_c for row in range(15)]
    assert weights_lc == pytest.approx(np.stack(alone), abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_ten_thousand_texts_in_blocks_equal_their_parts(rule: RoutingRule, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, centers = random_task(10_000)
    config = RoutingConfig()
    whole = routing_weights(embeddings, centers, config, rule)
    monkeypatch.setattr("mode_ray.routing.weights._DISTANCES_AT_ONCE", 12 * 7)
    in_blocks = routing_weights(embeddings, centers, config, rule)
    assert np.isfinite(whole.weights_c).all()
    assert in_blocks.weights_c == pytest.approx(whole.weights_c, abs=1e-9)
    assert (in_blocks.nearest_fine_l == whole.nearest_fine_l).all()


@pytest.mark.parametrize("rule", RULES)
def test_extreme_temperatures_never_give_nan(rule: RoutingRule) -> None:
    config = RoutingConfig(temperature=1e-310, paper_lambda=1e-300, released_softmax_temperature=1e-9)
    weights = routing_weights(texts(X, X, Y), TWO_EXPERTS, config, rule).weights_c
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1.0)


def test_a_low_temperature_makes_soft_count_nearest_centers() -> None:
    weights = routing_weights(texts(X, X, Y), TWO_EXPERTS, RoutingConfig(rule="soft", temperature=1e-6)).weights_c
    assert weights == pytest.approx([2 / 3, 1 / 3], abs=1e-9)


def test_a_text_on_a_center_has_distance_zero_not_below() -> None:
    embeddings, _ = random_task(50)
    routed = routing_weights(
        embeddings, ExpertCenters(embeddings[:12], np.arange(12) % 3), RoutingConfig(), "released"
    )
    assert routed.nearest_squared_distance_l[:12] == pytest.approx(np.zeros(12), abs=1e-12)
    assert (routed.nearest_squared_distance_l >= 0).all()


def test_equally_near_centers_go_to_the_first() -> None:
    centers = np.array([[0.5, 0.0], [0.5, 0.0]], dtype=np.float32)
    routed = routing_weights(texts(X), ExpertCenters(centers, np.array([1, 0])), RoutingConfig(), "paper")
    assert routed.nearest_fine_l.tolist() == [0]
    assert routed.weights_c[1] > routed.weights_c[0]


@pytest.mark.parametrize(
    ("weights", "entropy"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0.0),
        ([0.25, 0.25, 0.25, 0.25], 1.0),
        ([0.5, 0.5, 0.0, 0.0], 0.5),  # ln 2 / ln 4
        ([0.5, 0.25, 0.25, 0.0], 0.75),  # (0.5 * 1 + 2 * 0.25 * 2) bits / 2 bits
        ([1.0], 1.0),
    ],
)
def test_entropy_is_relative_to_the_number_of_experts(weights: list[float], entropy: float) -> None:
    assert normalised_entropy(np.array(weights)) == pytest.approx(entropy, abs=1e-12)


def test_mean_direction_normalises_before_and_after() -> None:
    # (3, 0) -> (1, 0) and (0, 0.1) -> (0, 1); the mean (0.5, 0.5) -> (0.707107, 0.707107)
    direction = mean_direction(np.array([[3.0, 0.0], [0.0, 0.1]]))
    assert direction == pytest.approx([math.sqrt(0.5)] * 2, abs=1e-6)
    assert direction.dtype == np.float32


@pytest.mark.parametrize("rows", [[[0.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]], [[np.nan, 1.0]]])
def test_mean_direction_refuses_what_has_none(rows: list[list[float]]) -> None:
    with pytest.raises(DataError, match="direction"):
        mean_direction(np.array(rows))


def test_no_texts_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match="no texts"):
        routing_weights(np.empty((0, 2), np.float32), TWO_EXPERTS, RoutingConfig())
    with pytest.raises(UsageError, match="template"):
        mean_direction(np.empty((0, 2)))


def test_another_encoders_dimension_is_named() -> None:
    with pytest.raises(DataError, match="3 dimensions but the fine centers 2"):
        routing_weights(texts((1.0, 0.0, 0.0)), TWO_EXPERTS, RoutingConfig())


@pytest.mark.parametrize(
    ("row", "message"), [((2.0, 0.0), "length 2"), ((0.0, 0.0), "length 0"), ((math.nan, 0.0), "length nan")]
)
def test_rows_that_are_not_unit_length_are_named(row: tuple[float, float], message: str) -> None:
    with pytest.raises(DataError, match=f"text 1 .*{message}"):
        routing_weights(texts(X, row), TWO_EXPERTS, RoutingConfig())


def test_a_map_that_does_not_fit_the_centers_is_refused() -> None:
    with pytest.raises(DataError, match="3 fine centers"):
        routing_weights(texts(X), ExpertCenters(CENTERS, np.array([0, 1])), RoutingConfig())
    with pytest.raises(DataError, match="outside 0 to 1"):
        routing_weights(texts(X), ExpertCenters(CENTERS, np.array([0, 1, 2]), n=2), RoutingConfig())


class TestCalibrated:
    def test_it_is_soft_at_the_fitted_temperature(self) -> None:
        embeddings, centers = random_task(20)
        soft = routing_weights(embeddings, centers, RoutingConfig(rule="soft", temperature=0.37))
        config = RoutingConfig(temperature=9.0)
        calibrated = routing_weights(embeddings, replace(centers, fitted_temperature=0.37), config)
        assert calibrated.rule == "calibrated"
        assert calibrated.temperature == 0.37
        assert calibrated.weights_c.tolist() == soft.weights_c.tolist()

    def test_without_a_fitted_temperature_it_is_soft(self) -> None:
        embeddings, centers = random_task(20)
        config = RoutingConfig(temperature=0.3)
        calibrated = routing_weights(embeddings, centers, config)
        soft = routing_weights(embeddings, centers, config, "soft")
        assert calibrated.temperature == 0.3
        assert calibrated.weights_c.tolist() == soft.weights_c.tolist()


class TestWhyTheseExperts:
    @pytest.mark.parametrize("rule", ["calibrated", "soft"])
    def test_the_centers_parts_add_up_to_the_experts_weights(self, rule: RoutingRule) -> None:
        embeddings, centers = random_task(40)
        routed = routing_weights(embeddings, centers, RoutingConfig(), rule)
        assert routed.fine_weight_m is not None
        assert np.bincount(centers.group_m, weights=routed.fine_weight_m) == pytest.approx(routed.weights_c, abs=1e-12)

    def test_the_largest_come_first_and_those_without_weight_not_at_all(self) -> None:
        routed = routing_weights(texts(X, X, Y), TWO_EXPERTS, RoutingConfig(rule="soft", temperature=1e-6))
        assert top_centers(routed, 5) == [(0, pytest.approx(2 / 3)), (1, pytest.approx(1 / 3))]  # type: ignore[comparison-overlap]
        assert [fine for fine, _ in top_centers(routed, 1)] == [0]

    def test_paper_counts_the_nearest_centers_and_uniform_none(self) -> None:
        paper = routing_weights(texts(X, X), TWO_EXPERTS, RoutingConfig(), "paper")
        assert top_centers(paper, 3) == [(0, pytest.approx(1.0))]  # type: ignore[comparison-overlap]
        assert top_centers(routing_weights(texts(X), TWO_EXPERTS, RoutingConfig(), "uniform"), 3) == []


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(5))
class TestWeightsAreNeverNan:
    """Whatever the task: random ones of every size, duplicates, far and near texts, few and many experts."""

    def check(self, embeddings: np.ndarray, centers: ExpertCenters, rule: RoutingRule) -> None:
        routed = routing_weights(embeddings, centers, RoutingConfig(), rule)
        own = per_query_weights(embeddings[:50], centers, RoutingConfig(), rule)
        for weights in (routed.weights_c[None], own):
            assert np.isfinite(weights).all()
            assert (weights >= 0.0).all()
            assert weights.sum(axis=1) == pytest.approx(np.ones(len(weights)), abs=1e-9)
        assert 0.0 <= routed.normalised_entropy <= 1.0

    @pytest.mark.parametrize("count", [1, 2, 9, 10, 201, 10_000])
    def test_of_any_number_of_texts(self, rule: RoutingRule, seed: int, count: int) -> None:
        self.check(*random_task(count, seed), rule)

    def test_of_equal_texts(self, rule: RoutingRule, seed: int) -> None:
        embeddings, centers = random_task(3, seed)
        self.check(np.repeat(embeddings, 70, axis=0), centers, rule)

    def test_of_texts_on_the_centers(self, rule: RoutingRule, seed: int) -> None:
        embeddings, centers = random_task(12, seed)
        self.check(embeddings, replace(centers, centers_md=embeddings), rule)

    @pytest.mark.parametrize("experts", [1, 2, 12])
    def test_of_one_expert_or_as_many_as_centers(self, rule: RoutingRule, seed: int, experts: int) -> None:
        embeddings, centers = random_task(7, seed)
        self.check(embeddings, replace(centers, group_m=np.arange(12) % experts), rule)

    def test_of_equal_centers_in_different_experts(self, rule: RoutingRule, seed: int) -> None:
        embeddings, centers = random_task(7, seed)
        self.check(embeddings, replace(centers, centers_md=np.repeat(centers.centers_md[:1], 12, axis=0)), rule)

    def test_of_far_centers(self, rule: RoutingRule, seed: int) -> None:
        embeddings, centers = random_task(7, seed)
        self.check(embeddings, replace(centers, centers_md=centers.centers_md * 1e4), rule)


NAMES = ["cat", "cat", "Hündchen", "北京", "собака", "قطة", "👩‍🚀", "a\u0301", "x" * 3000]


@pytest.mark.parametrize("rule", RULES)
def test_names_in_any_language_and_equal_ones_route(rule: RoutingRule) -> None:
    encoder = load_encoder(EncoderConfig(kind="static", model="package:wordllama"), EncoderPlacement())
    embeddings = encoder.encode(NAMES)
    centers = encoder.encode([f"number {number} of {word}" for word in ("dogs", "cities") for number in range(6)])
    routed = routing_weights(embeddings, ExpertCenters(centers, np.arange(12) // 6), RoutingConfig(), rule)
    assert np.isfinite(routed.weights_c).all()
    assert routed.weights_c.sum() == pytest.approx(1.0)


def test_an_empty_name_has_no_direction_and_is_named() -> None:
    encoder = load_encoder(EncoderConfig(kind="static", model="package:wordllama"), EncoderPlacement())
    embeddings = encoder.encode(["cat", ""])
    with pytest.raises(DataError, match="text 1 has an embedding of length 0"):
        routing_weights(embeddings, ExpertCenters(encoder.encode(["a", "b"]), np.array([0, 1])), RoutingConfig())
