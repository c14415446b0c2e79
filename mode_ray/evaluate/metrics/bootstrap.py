"""Confidence intervals of metrics by the bootstrap over images, as pure functions.

A resample draws as many images as there are, with replacement. A metric receives the count of each image, so ranks
are computed only once. With the same seed, all metrics of the same images use the same resamples, so the difference of
the draws of two models is a paired comparison. Draws of several tasks with different seeds can be averaged to draws of
their mean.
"""

from collections.abc import Callable, Iterator

import numpy as np

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics.curves import Floats

_COUNTS_AT_ONCE = 1 << 22


def bootstrap_draws(
    values: Callable[[Floats], Floats], images: int, *, resamples: int = 1000, seed: int = 0
) -> Floats:
    """A metric on resamples of the images.

    Args:
        values: Computes the metric of every row from image counts [b, i]; NaN where it is not defined.
        images: Number of images.
        resamples: Number of draws.
        seed: Seed of the draws, which depend only on it and on `images`.

    Returns:
        float64 [resamples], NaN where a draw does not define the metric.
    """
    return np.concatenate([values(counts_bi) for counts_bi in _resamples(images, resamples, seed)])


def percentile_interval(draws_b: Floats, level: float = 0.95) -> tuple[float, float]:
    """The interval between the outer percentiles of bootstrap draws (Efron and Tibshirani 1993, section 13.3).

    Args:
        draws_b: Draws of a metric, or of the difference of two models on the same images. NaN draws (a class without
            images) are left out.
        level: Confidence level.

    Returns:
        Lower and upper end.

    Raises:
        DataError: The metric is not defined on any draw.
    """
    defined = draws_b[np.isfinite(draws_b)]
    if len(defined) == 0:
        raise DataError("the metric is not defined on any resample of the images: there are too few for an interval")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resamples(images: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks of resamples as counts [b, i]. The draws do not depend on the block size."""
    generator = np.random.default_rng(seed)
    step = max(1, _COUNTS_AT_ONCE // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn_bi = generator.integers(0, images, (rows, images))
        flat = (drawn_bi + images * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * images).reshape(rows, images).astype(np.float64)
