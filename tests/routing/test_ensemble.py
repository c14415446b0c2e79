"""The weighted mean of cosines, in its three equal forms, and what pruning leaves of the weights."""

from functools import partial

import numpy as np
import pytest
from scipy.special import softmax

from mode_ray.routing.mix import (
    concatenated_images,
    concatenated_texts,
    ensemble_scores,
    keep_share,
    keep_top,
    per_query_scores,
    probabilities,
    without_experts,
)

IMAGES, TEXTS, DIMENSIONS = 7, 5, (16, 16, 8)  # experts need not agree in their dimension


def unit_rows(rows: int, dimension: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


@pytest.fixture
def image_features() -> list[np.ndarray]:
    return [unit_rows(IMAGES, dimension, seed) for seed, dimension in enumerate(DIMENSIONS)]


@pytest.fixture
def text_features() -> list[np.ndarray]:
    return [unit_rows(TEXTS, dimension, 10 + seed) for seed, dimension in enumerate(DIMENSIONS)]


@pytest.fixture
def cosines(image_features: list[np.ndarray], text_features: list[np.ndarray]) -> np.ndarray:
    return np.stack([images @ texts.T for images, texts in zip(image_features, text_features, strict=True)])


def test_scores_are_the_weighted_mean_of_the_cosines() -> None:
    cosines = np.array([[[1.0, 0.0]], [[0.5, -0.5]]])
    np.testing.assert_allclose(ensemble_scores(cosines, np.array([0.75, 0.25])), [[0.875, -0.125]])


def test_all_weight_on_one_expert_is_that_expert(cosines: np.ndarray) -> None:
    np.testing.assert_allclose(ensemble_scores(cosines, np.array([0.0, 1.0, 0.0])), cosines[1])


def test_scores_keep_the_precision_of_the_cosines_and_are_right_to_it(cosines: np.ndarray) -> None:
    weights_c = np.array([0.2, 0.5, 0.3])
    scores = ensemble_scores(cosines, weights_c)
    assert cosines.dtype == scores.dtype == np.dtype(np.float32)
    exact = np.tensordot(weights_c, cosines.astype(np.float64), axes=1)
    np.testing.assert_allclose(scores, exact, atol=1e-6)
    assert ensemble_scores(cosines.astype(np.float64), weights_c).dtype == np.float64


def test_blocks_of_images_change_nothing(cosines: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    weights_c, weights_lc = np.array([0.2, 0.5, 0.3]), np.random.default_rng(1).dirichlet(np.ones(3), TEXTS)
    whole = ensemble_scores(cosines, weights_c), per_query_scores(cosines, weights_lc)
    monkeypatch.setattr("mode_ray.routing.mix._COSINES_AT_ONCE", 2 * TEXTS)
    np.testing.assert_array_equal(ensemble_scores(list(cosines), weights_c), whole[0])
    np.testing.assert_array_equal(per_query_scores(list(cosines), weights_lc), whole[1])


def test_an_expert_without_weight_is_not_read(cosines: np.ndarray) -> None:
    class Unread:
        def __getitem__(self, _: object) -> np.ndarray:
            raise AssertionError("read")

    weights_c = np.array([0.25, 0.75, 0.0])
    found = ensemble_scores([*cosines[:2], Unread()], weights_c)  # type: ignore[list-item]
    np.testing.assert_array_equal(found, ensemble_scores(cosines, weights_c))


def test_the_concatenated_embeddings_product_is_the_same_number(
    image_features: list[np.ndarray], text_features: list[np.ndarray], cosines: np.ndarray
) -> None:
    weights = np.array([0.6, 0.3, 0.1])
    images, texts = concatenated_images(image_features), concatenated_texts(text_features, weights)
    assert images.shape == (IMAGES, sum(DIMENSIONS))
    assert texts.shape == (TEXTS, sum(DIMENSIONS))
    np.testing.assert_allclose(images @ texts.T, ensemble_scores(cosines, weights), atol=1e-5)


def test_so_it_is_with_weights_of_its_own_for_every_query(
    image_features: list[np.ndarray], text_features: list[np.ndarray], cosines: np.ndarray
) -> None:
    weights_lc = np.random.default_rng(3).dirichlet(np.ones(3), TEXTS)
    product = concatenated_images(image_features) @ concatenated_texts(text_features, weights_lc).T
    scores = per_query_scores(cosines, weights_lc)
    np.testing.assert_allclose(product, scores, atol=1e-5)
    for text in range(TEXTS):
        alone = ensemble_scores(cosines[:, :, [text]], weights_lc[text])
        np.testing.assert_allclose(scores[:, [text]], alone, atol=1e-6)


def test_equal_weights_for_every_query_are_weights_of_the_task(cosines: np.ndarray) -> None:
    weights = np.array([0.6, 0.3, 0.1])
    np.testing.assert_allclose(
        per_query_scores(cosines, np.tile(weights, (TEXTS, 1))), ensemble_scores(cosines, weights), atol=1e-6
    )


class TestProbabilities:
    def test_the_scale_is_the_weighted_mean_of_the_experts_scales(self) -> None:
        scores = np.array([[0.3, 0.2, 0.1]])
        result = probabilities(scores, np.array([0.75, 0.25]), np.array([100.0, 20.0]))
        np.testing.assert_allclose(result, softmax(80.0 * scores, axis=1))

    def test_they_sum_to_one_over_the_texts_and_keep_the_order(self, cosines: np.ndarray) -> None:
        scores = ensemble_scores(cosines, np.full(3, 1 / 3))
        result = probabilities(scores, np.full(3, 1 / 3), np.full(3, 50.0))
        np.testing.assert_allclose(result.sum(axis=1), 1.0)
        np.testing.assert_array_equal(result.argmax(axis=1), scores.argmax(axis=1))


class TestPruning:
    WEIGHTS = np.array([0.1, 0.4, 0.2, 0.3])

    def test_the_largest_are_kept_and_scaled_to_one(self) -> None:
        np.testing.assert_allclose(keep_top(self.WEIGHTS, 2), [0, 4 / 7, 0, 3 / 7])

    def test_of_equal_weights_the_lower_id_stays(self) -> None:
        np.testing.assert_allclose(keep_top(np.full(4, 0.25), 2), [0.5, 0.5, 0, 0])

    @pytest.mark.parametrize("experts", [4, 9])
    def test_keeping_all_changes_nothing(self, experts: int) -> None:
        np.testing.assert_allclose(keep_top(self.WEIGHTS, experts), self.WEIGHTS)

    @pytest.mark.parametrize(
        ("share", "kept"),
        [(0.0, [1]), (0.4, [1]), (0.41, [1, 3]), (0.7, [1, 3]), (0.9, [1, 2, 3]), (1.0, [0, 1, 2, 3])],
    )
    def test_the_smallest_set_that_covers_the_share_is_kept(self, share: float, kept: list[int]) -> None:
        pruned = keep_share(self.WEIGHTS, share)
        assert np.flatnonzero(pruned).tolist() == kept
        assert pruned.sum() == pytest.approx(1.0)

    def test_experts_without_weight_are_never_needed(self) -> None:
        np.testing.assert_allclose(keep_share(np.array([0.0, 1.0, 0.0]), 1.0), [0, 1, 0])

    def test_the_weights_given_are_not_changed(self) -> None:
        before = self.WEIGHTS.copy()
        keep_top(self.WEIGHTS, 1)
        keep_share(self.WEIGHTS, 0.5)
        np.testing.assert_array_equal(self.WEIGHTS, before)

    def test_every_text_s_own_weights_are_pruned_by_themselves(self) -> None:
        weights_lc = np.random.default_rng(5).dirichlet(np.ones(4), 9)
        for prune in (partial(keep_top, experts=2), partial(keep_share, share=0.7)):
            rows = np.stack([prune(weights_c) for weights_c in weights_lc])
            np.testing.assert_allclose(prune(weights_lc), rows)


class TestMissingExperts:
    def test_the_others_keep_their_proportions(self) -> None:
        np.testing.assert_allclose(without_experts(np.array([0.2, 0.5, 0.3]), [1]), [0.4, 0.0, 0.6])

    def test_what_only_they_would_answer_the_others_answer_alike(self) -> None:
        weights_lc = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
        np.testing.assert_allclose(without_experts(weights_lc, [1]), [[0.5, 0.0, 0.5], [0.5, 0.0, 0.5]])
