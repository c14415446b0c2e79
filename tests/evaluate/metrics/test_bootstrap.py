"""Intervals compared with scipy's bootstrap; seeds, blocks, pairs, and draws without a defined metric."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics import bootstrap
from mode_ray.evaluate.metrics.bootstrap import bootstrap_draws, percentile_interval
from mode_ray.evaluate.metrics.metric_table import METRICS
from mode_ray.evaluate.metrics.scored import Scored


def mean_of(values_i: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda counts_bi: np.asarray(counts_bi @ values_i / counts_bi.sum(axis=1))


def scored(images: int = 120, seed: int = 0) -> Scored:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 8, images)
    scores = generator.standard_normal((images, 8)) + 1.5 * np.eye(8)[labels]
    return Scored(kind="classification", scores_il=scores, labels=labels)


@pytest.mark.parametrize("metric", ["top1", "top5", "mean_per_class"])
def test_it_agrees_with_scipy(metric: str) -> None:
    data = scored()
    values = METRICS["classification"][metric].values

    def of_rows(rows: np.ndarray) -> float:
        return float(values(data, np.bincount(rows, minlength=data.images)[None].astype(float))[0])

    expected = scipy.stats.bootstrap(
        (np.arange(data.images),), of_rows, n_resamples=3000, vectorized=False, method="percentile", rng=1
    ).confidence_interval
    found = percentile_interval(bootstrap_draws(lambda counts: values(data, counts), data.images, resamples=3000))
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_the_draws_are_as_wide_as_the_theory_says() -> None:
    hits = np.r_[np.ones(300), np.zeros(700)]
    draws = bootstrap_draws(mean_of(hits), 1000, resamples=4000)
    assert draws.mean() == pytest.approx(0.3, abs=0.002)
    assert draws.std() == pytest.approx(np.sqrt(0.3 * 0.7 / 1000), rel=0.05)


def test_a_seed_decides_the_draws_and_the_size_of_the_blocks_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = mean_of(np.random.default_rng(0).random(37))
    first = bootstrap_draws(values, 37, resamples=50, seed=3)
    np.testing.assert_array_equal(first, bootstrap_draws(values, 37, resamples=50, seed=3))
    assert not np.array_equal(first, bootstrap_draws(values, 37, resamples=50, seed=4))
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_ONCE", 100)
    np.testing.assert_allclose(bootstrap_draws(values, 37, resamples=50, seed=3), first, rtol=1e-12)


def test_every_resample_has_as_many_images_as_there_are() -> None:
    assert set(bootstrap_draws(lambda counts: counts.sum(axis=1), 11, resamples=200)) == {11.0}


def test_a_paired_difference_is_narrower_than_two_apart() -> None:
    one = (np.random.default_rng(0).random(400) < 0.5).astype(float)
    other = one.copy()
    other[:8] = 1 - other[:8]
    paired = bootstrap_draws(mean_of(one), 400) - bootstrap_draws(mean_of(other), 400)
    apart = bootstrap_draws(mean_of(one), 400) - bootstrap_draws(mean_of(other), 400, seed=1)
    assert paired.std() < 0.5 * apart.std()


def test_an_interval_is_between_percentiles_and_narrows_with_its_level() -> None:
    draws = np.arange(101.0)
    assert percentile_interval(draws, 0.9) == pytest.approx((5.0, 95.0))
    assert percentile_interval(np.full(10, 0.25)) == (0.25, 0.25)


def test_draws_without_a_defined_metric_are_left_out() -> None:
    # One positive image of six: a third of the resamples miss it, and have no area.
    positive = np.array([1, 0, 0, 0, 0, 0])
    data = Scored(kind="classification", scores_il=np.eye(6, 2)[::-1], labels=positive)
    values = METRICS["classification"]["roc_auc"].values
    draws = bootstrap_draws(lambda counts: values(data, counts), 6, resamples=500)
    missing = int(np.isnan(draws).sum())
    assert 100 < missing < 240
    assert percentile_interval(draws) == percentile_interval(draws[np.isfinite(draws)])
    with pytest.raises(DataError, match="there are too few"):
        percentile_interval(np.full(3, np.nan))
