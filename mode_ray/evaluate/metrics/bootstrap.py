"""Confidence intervals of metrics by the bootstrap over images, as pure functions.

A resample draws as many images as there are, with replacement; a metric sees it as how often each image counts, so
that no ranks are computed again. With one seed the resamples are the same for every metric of the same images: the
difference of two models' draws is a paired comparison. Draws of several tasks, each with a seed of its own, may be
averaged to draws of their mean.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics.curves import Floats

_COUNTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        level: The share of such intervals that hold the true value, as far as the bootstrap's assumptions go.
        resamples: Draws that it rests on.
    """

    low: float
    high: float
    level: float
    resamples: int


def bootstrap_draws(
    values: Callable[[Floats], Floats], images: int, *, resamples: int = 1000, seed: int = 0
) -> Floats:
    """A metric on resamples of the images.

    Args:
        values: From how often each image counts, [b, i], the metric of every row; NaN where it is not defined.
        images: Number of images.
        resamples: Number of draws.
        seed: Of the draws; together with `images` it decides them.

    Returns:
        float64 [resamples], NaN where a draw does not define the metric.
    """
    return np.concatenate([values(counts_bi) for counts_bi in _resamples(images, resamples, seed)])


def percentile_interval(draws_b: Floats, level: float = 0.95) -> Interval:
    """The interval between the outer percentiles of bootstrap draws (Efron and Tibshirani 1993, section 13.3).

    Args:
        draws_b: Of a metric, or of the difference of two models on the same images; draws that are NaN, because a
            class was left without images, are left out and do not count in `resamples`.
        level: Of confidence.

    Raises:
        DataError: No draw defines the metric.
    """
    defined = draws_b[np.isfinite(draws_b)]
    if len(defined) == 0:
        raise DataError("no resample of the images defines the metric: there are too few images for an interval")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(defined))


def _resamples(images: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks of resamples as counts [b, i]; the draws do not depend on the size of the blocks."""
    generator = np.random.default_rng(seed)
    step = max(1, _COUNTS_AT_ONCE // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn_bi = generator.integers(0, images, (rows, images))
        flat = (drawn_bi + images * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * images).reshape(rows, images).astype(np.float64)
