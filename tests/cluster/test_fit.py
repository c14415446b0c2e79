"""The quantiles of squared distances that a clustering keeps."""

import numpy as np
import pytest

from mode_ray.cluster.both_steps import DISTANCE_QUANTILES, histogram_quantiles
from mode_ray.cluster.fit.sample_rows import HISTOGRAM_BINS, HISTOGRAM_END, LocalRows

BIN = HISTOGRAM_END / HISTOGRAM_BINS


def counted(values: np.ndarray) -> np.ndarray:
    return np.histogram(values, HISTOGRAM_BINS, (0.0, HISTOGRAM_END))[0]


@pytest.mark.parametrize("rows", [1_000, 20_000])
def test_quantiles_are_numpy_s_to_within_a_bin_and_a_row(rows: int) -> None:
    values = np.random.default_rng(0).beta(3.0, 5.0, rows) * 1.5
    found = histogram_quantiles(counted(values))
    below, above = (
        np.quantile(values, np.clip(np.asarray(DISTANCE_QUANTILES) + step / rows, 0.0, 1.0)) for step in (-1, 1)
    )
    assert (found >= below - BIN).all()
    assert (found <= above + BIN).all()
    np.testing.assert_allclose(found, np.quantile(values, DISTANCE_QUANTILES), atol=0.02)


def test_equal_values_are_in_one_bin() -> None:
    found = histogram_quantiles(counted(np.full(500, 0.7)))
    assert (np.abs(found - 0.7) <= BIN).all()
    assert (np.diff(found) > 0.0).all()


def test_larger_distances_are_counted_in_the_last_bin() -> None:
    centers = np.zeros((1, 2), np.float32)
    histogram = LocalRows(np.array([[0.0, 0.5], [30.0, 40.0]])).distance_histogram(centers)
    assert (histogram.sum(), histogram[-1]) == (2, 1)
    assert histogram_quantiles(histogram, (0.5, 1.0)).tolist() == [pytest.approx(0.25, abs=BIN), HISTOGRAM_END]


def test_no_rows_are_no_error() -> None:
    assert np.isfinite(histogram_quantiles(np.zeros(HISTOGRAM_BINS, np.int64))).all()
