"""Areas compared with their definitions, for all orders of ties and with repeated items."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from mode_ray.evaluate.metrics.curves import average_precision, roc_auc


def once(items: int) -> np.ndarray:
    return np.ones((1, items))


def precision_by_definition(scores: np.ndarray, positive: np.ndarray) -> float:
    """Recall gained at every threshold times the precision there."""
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        recall = (taken & positive).sum() / positive.sum()
        area += (recall - recall_before) * (taken & positive).sum() / taken.sum()
        recall_before = recall
    return area


@pytest.mark.parametrize("distinct", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_random_scores_agree_with_the_definitions(seed: int, distinct: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, distinct, 80) / distinct
    positive = generator.random(80) < 0.3
    statistic = mannwhitneyu(scores[positive], scores[~positive]).statistic
    expected = statistic / (positive.sum() * (~positive).sum())
    assert roc_auc(scores, positive, once(80))[0] == pytest.approx(expected)
    assert average_precision(scores, positive, once(80))[0] == pytest.approx(precision_by_definition(scores, positive))


def test_perfect_reversed_and_constant_scores() -> None:
    positive = np.array([False, False, True, True])
    rising = np.arange(4.0)
    assert roc_auc(rising, positive, once(4))[0] == 1.0
    assert roc_auc(-rising, positive, once(4))[0] == 0.0
    assert roc_auc(np.zeros(4), positive, once(4))[0] == 0.5
    assert average_precision(rising, positive, once(4))[0] == 1.0
    assert average_precision(-rising, positive, once(4))[0] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert average_precision(np.zeros(4), positive, once(4))[0] == 0.5


def test_the_order_of_the_items_is_of_no_account() -> None:
    generator = np.random.default_rng(3)
    scores, positive = generator.integers(0, 4, 30) / 4, generator.random(30) < 0.5
    order = generator.permutation(30)
    for area in (roc_auc, average_precision):
        assert area(scores, positive, once(30))[0] == pytest.approx(area(scores[order], positive[order], once(30))[0])


def test_items_may_count_several_times_or_not_at_all() -> None:
    generator = np.random.default_rng(4)
    scores, positive = generator.integers(0, 5, 20) / 5, generator.random(20) < 0.5
    counts = generator.integers(0, 4, (6, 20))
    for area in (roc_auc, average_precision):
        together = area(scores, positive, counts.astype(float))
        for row, expected in zip(counts, together, strict=True):
            copies = np.repeat(np.arange(20), row)
            assert expected == pytest.approx(area(scores[copies], positive[copies], once(len(copies)))[0])


def test_without_positive_or_negative_items_it_is_not_defined() -> None:
    scores = np.arange(3.0)
    everything, nothing = np.ones(3, bool), np.zeros(3, bool)
    assert np.isnan(roc_auc(scores, everything, once(3))[0])
    assert np.isnan(roc_auc(scores, nothing, once(3))[0])
    assert np.isnan(average_precision(scores, nothing, once(3))[0])
    assert average_precision(scores, everything, once(3))[0] == 1.0
