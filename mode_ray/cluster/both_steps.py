"""Both clustering steps: the fine centers, and a coarse map for every n."""

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.calibration import (
    CALIBRATION_KEY,
    calibration_rows,
    evenly_spaced,
    fit_temperature,
    stored_form,
)
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.coarse import group_centers
from mode_ray.cluster.fit.kmeans import FineFit, fit_rows
from mode_ray.cluster.fit.sample_rows import HISTOGRAM_END, SampleRows
from mode_ray.cluster.fit.sizes import imbalance_factor, max_over_mean
from mode_ray.cluster.fit.state import FitState, delete_fit_state, read_fit_state, write_fit_state
from mode_ray.cluster.fit_clock import FitClock
from mode_ray.config.cluster import ClusterConfig
from mode_ray.storage import Location

DISTANCE_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


def fit_clustering(
    sample: SampleRows,
    config: ClusterConfig,
    encoder_name: str,
    directory: Location,
    clock: FitClock | None = None,
) -> dict[str, Any]:
    """Fit a clustering on a sample, and save it.

    The state is saved after every iteration. An interrupted fit resumes from it with the same result.

    Args:
        sample: Caption embeddings.
        config: Settings of both steps.
        encoder_name: The encoder that made the embeddings.
        directory: Directory for the clustering.
        clock: Measures the parts of the fit.

    Returns:
        Figures of the fit; the clustering stores them too.

    Raises:
        DataError: Fewer distinct embeddings than centers.
    """
    clock = clock or FitClock()

    def keep(state: FitState) -> None:
        write_fit_state(directory, state)
        clock.iteration_ended()

    fit = fit_rows(sample, config.fine, config.seed, keep, read_fit_state(directory))
    histogram = sample.distance_histogram(fit.centers_md)
    clock.ended("last_prices")
    maps = {n: group_centers(fit.centers_md, fit.mass_m, n, config.coarse, config.seed) for n in config.coarse.experts}
    captions_pd = sample.take(evenly_spaced(sample.rows, calibration_rows(len(fit.centers_md))))
    calibrations = {n: fit_temperature(captions_pd, fit.centers_md, coarse.group_m) for n, coarse in maps.items()}
    clock.ended("coarse")
    figures = {
        **_figures(fit),
        "squared_distance_quantiles": {
            str(share): round(float(value), 6)
            for share, value in zip(DISTANCE_QUANTILES, histogram_quantiles(histogram), strict=True)
        },
        "coarse": {
            str(n): {
                "load": coarse.load_n.round(4).tolist(),
                "slack_used": round(coarse.slack_used, 4),
                "max_load_over_mean": round(float(coarse.load_n.max()) * n, 4),
            }
            for n, coarse in maps.items()
        },
        CALIBRATION_KEY: stored_form(calibrations),
    }
    Clustering(
        centers_md=fit.centers_md,
        prices_m=fit.prices_m,
        mass_m=fit.mass_m,
        squared_distance_m=fit.squared_distance_m,
        encoder_name=encoder_name,
        coarse={n: coarse.group_m for n, coarse in maps.items()},
        training=figures,
    ).save(directory)
    delete_fit_state(directory)
    return figures


def histogram_quantiles(
    histogram_b: npt.NDArray[np.int64], shares: tuple[float, ...] = DISTANCE_QUANTILES
) -> npt.NDArray[np.float64]:
    """Quantiles of a histogram with equal bins from 0 to 4, linear within a bin."""
    cumulative = np.concatenate([[0.0], np.cumsum(histogram_b, dtype=np.float64)])
    wanted = np.asarray(shares) * cumulative[-1]
    after = np.clip(np.searchsorted(cumulative, wanted, side="left"), 1, len(histogram_b))
    within = (wanted - cumulative[after - 1]) / np.maximum(cumulative[after] - cumulative[after - 1], 1.0)
    return np.asarray((after - 1 + within) * (HISTOGRAM_END / len(histogram_b)))


def _figures(fit: FineFit) -> dict[str, Any]:
    return {
        "sample_rows": fit.rows,
        "distinct_rows": fit.distinct_rows,
        "iterations": len(fit.history),
        "last_iteration": asdict(fit.history[-1]),
        "init": fit.init,
        "mean_squared_distance": float(fit.squared_distance_m.sum() / fit.rows),
        "fitted_mean_squared_distance": fit.fitted_inertia / fit.rows,
        "fitted_max_over_mean": max_over_mean(fit.fitted_mass_m),
        "fitted_imbalance_factor": imbalance_factor(fit.fitted_mass_m),
        "nearest_max_over_mean": max_over_mean(fit.mass_m),
        "nearest_imbalance_factor": imbalance_factor(fit.mass_m),
        **({} if fit.extended_from is None else {"extended_from": fit.extended_from}),
        **({} if (fit.balance_score or 0.0) <= 1.0 else {"balance_score": fit.balance_score}),
    }
