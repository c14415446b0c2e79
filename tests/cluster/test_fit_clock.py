"""The time of a fit is counted in its parts, and in all of them."""

import time
from pathlib import Path

import numpy as np
import pytest

from mode_ray.cluster.both_steps import fit_clustering
from mode_ray.cluster.fit.sample_rows import LocalRows
from mode_ray.cluster.fit_clock import FitClock
from mode_ray.config.cluster import ClusterConfig, CoarseConfig, FineConfig
from mode_ray.storage import Location


def test_the_parts_of_a_fit_add_up_to_its_time(tmp_path: Path) -> None:
    fine = FineConfig(centers=16, iterations=5, price_updates=8, tolerance=0.0)
    config = ClusterConfig(sample_rows=1_000, fine=fine, coarse=CoarseConfig(experts=(2, 4)))
    rows = LocalRows(np.random.default_rng(0).normal(size=(1_000, 24)))
    began, clock = time.monotonic(), FitClock()
    figures = fit_clustering(rows, config, "encoder", Location(str(tmp_path)), clock)
    taken = time.monotonic() - began
    assert figures["iterations"] == 5
    assert clock.iterations == 4, "the first one belongs to the start"
    assert set(clock.seconds) == {"start", "iterations", "last_prices", "coarse"}
    assert min(clock.seconds.values()) > 0.0
    assert 0.5 * taken < sum(clock.seconds.values()) <= taken  # saving comes on top


def test_figures_for_the_manifest_have_every_part_that_was_not_read_elsewhere() -> None:
    clock = FitClock()
    clock.ended("coarse")
    assert clock.figures() == pytest.approx(
        {"start": 0.0, "iterations": 0.0, "last_prices": 0.0, "coarse": 0.0, "timed": 0}, abs=0.1
    )
