"""Rows of a sample on a device, here the CPU: fits as with the rows in main memory."""

import numpy as np
import pytest
import torch

from mode_ray.cluster.fit.device_rows import DeviceRows, sample_rows
from mode_ray.cluster.fit.kmeans import fit_rows
from mode_ray.cluster.fit.sample_rows import CandidateSearch, LocalRows
from mode_ray.config.cluster import ClusterPlacement, FineConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Unit vectors around centers of different weight; one vector is repeated, so that it has a weight below 1."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, 32))
    made = centers[rng.integers(0, 40, 6_000) ** 2 // 40] + 0.7 * rng.normal(size=(6_000, 32))
    made[:400] = made[0]
    halves: np.ndarray = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)
    return halves


def test_sums_and_histogram_equal_those_of_local_rows(rows: np.ndarray) -> None:
    local, device = LocalRows(rows), DeviceRows(rows, CPU)
    centers = rows[::150].astype(np.float32)
    for ours, theirs in zip(
        vars(device.nearest_sums(centers)).values(), vars(local.nearest_sums(centers)).values(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_array_equal(device.nearest_sums(centers).counts_m, local.nearest_sums(centers).counts_m)
    np.testing.assert_array_equal(device.nearest_sums(centers, 4).counts_m, local.nearest_sums(centers, 4).counts_m)
    moved = np.abs(device.distance_histogram(centers) - local.distance_histogram(centers)).sum()
    assert moved <= 0.01 * len(rows), "only distances at the edge of a bin"
    np.testing.assert_array_equal(device.hashes(), local.hashes())


def test_a_plain_fit_has_the_same_centers(rows: np.ndarray) -> None:
    config = FineConfig(centers=32, iterations=5, balanced=False)
    ours, theirs = fit_rows(DeviceRows(rows, CPU), config, 0), fit_rows(LocalRows(rows), config, 0)
    np.testing.assert_array_equal(ours.centers_md, theirs.centers_md)
    np.testing.assert_array_equal(ours.mass_m, theirs.mass_m)


def test_rows_under_prices_equal_those_of_local_rows(rows: np.ndarray) -> None:
    local, device = LocalRows(rows), DeviceRows(rows, CPU)
    centers = rows[::150].astype(np.float32)
    hashes = np.unique(local.hashes()[:400])
    prices = np.random.default_rng(1).normal(size=len(centers)) * 0.01
    search = CandidateSearch(0, centers, prices, 0.1, hashes, np.full(len(hashes), 0.25, np.float32))
    for change in (0.0, 0.03):
        now = prices + change * np.sin(np.arange(len(prices)))
        np.testing.assert_array_equal(device.sizes(search, now), local.sizes(search, now))
        ours, theirs = device.priced_sums(search, now), local.priced_sums(search, now)
        np.testing.assert_array_equal(ours.counts_m, theirs.counts_m)
        np.testing.assert_array_equal(ours.sums_md, theirs.sums_md)
        np.testing.assert_allclose(ours.squared_distance_m, theirs.squared_distance_m, rtol=1e-5)


def test_a_balanced_fit_is_as_balanced_and_as_good(rows: np.ndarray) -> None:
    config = FineConfig(centers=32, iterations=8)
    ours, theirs = fit_rows(DeviceRows(rows, CPU), config, 0), fit_rows(LocalRows(rows), config, 0)
    assert ours.fitted_inertia == pytest.approx(theirs.fitted_inertia, rel=0.02)
    assert ours.balance_score is not None
    assert theirs.balance_score is not None
    assert ours.balance_score <= max(1.0, 1.1 * theirs.balance_score)


def test_without_gpus_the_rows_stay_in_main_memory(rows: np.ndarray) -> None:
    assert isinstance(sample_rows(rows, ClusterPlacement()), LocalRows)
