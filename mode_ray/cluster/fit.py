"""Fit a clustering on the stored embeddings: a uniform sample, the fine centers, a coarse map for every n."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from mode_ray.cluster.balance import imbalance_factor
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.coarse import group_centers
from mode_ray.cluster.kmeans import fit_fine
from mode_ray.config import RunConfig
from mode_ray.embeddings import EMBEDDING, embedding_vectors
from mode_ray.encoders.encoder import encoder_name
from mode_ray.errors import DataError
from mode_ray.sampling import allocate_sample, sample_positions
from mode_ray.stage import MANIFEST, read_units
from mode_ray.storage import Location

_SHARD_READERS = 8


def read_sample(embeddings: Location, sample_rows: int, seed: int) -> np.ndarray:
    """Embeddings of a uniform sample of all rows, in order of units, float32 [sample, d].

    Raises:
        DataError: There is no embedding at all.
    """
    rows_by_unit = {record.unit: record.rows_out for record in read_units(embeddings) if record.error is None}
    if sum(rows_by_unit.values()) == 0:
        raise DataError(f"{embeddings}: no caption was embedded; see the refused captions in {embeddings / MANIFEST}")
    wanted = allocate_sample(rows_by_unit, sample_rows, seed)

    def read(unit: str) -> np.ndarray:
        table = (embeddings / f"{unit}.parquet").read_table([EMBEDDING])
        positions = sample_positions(unit, table.num_rows, wanted[unit], seed)
        return embedding_vectors(table.take(pa.array(positions)))

    with ThreadPoolExecutor(_SHARD_READERS) as readers:
        return np.concatenate(list(readers.map(read, [unit for unit in sorted(wanted) if wanted[unit] > 0])))


def fit_clustering(config: RunConfig, embeddings: Location) -> tuple[Clustering, dict[str, Any]]:
    """Both clustering steps on the stored embeddings.

    Returns:
        The clustering, and figures for the manifest.

    Raises:
        DataError: Fewer distinct embeddings than centers.
    """
    cluster = config.cluster
    sample_nd = read_sample(embeddings, cluster.sample_rows, cluster.seed)
    fit = fit_fine(sample_nd, cluster.fine, cluster.seed, cluster.threads.threads, None)
    maps = {
        n: group_centers(fit.centers_md, fit.mass_m, n, cluster.coarse, cluster.seed) for n in cluster.coarse.experts
    }
    clustering = Clustering(
        centers_md=fit.centers_md,
        prices_m=fit.prices_m,
        mass_m=fit.mass_m,
        squared_distance_m=fit.squared_distance_m,
        encoder_name=encoder_name(config.encoder),
        coarse={n: coarse.group_m for n, coarse in maps.items()},
    )
    summary = {
        "sample_rows": len(sample_nd),
        "distinct_rows": fit.distinct_rows,
        "iterations": len(fit.history),
        "mean_squared_distance": float(fit.squared_distance_m.sum() / len(sample_nd)),
        "fitted_max_over_mean": float(fit.fitted_mass_m.max() / fit.fitted_mass_m.mean()),
        "fitted_imbalance_factor": imbalance_factor(fit.fitted_mass_m),
        "nearest_max_over_mean": float(fit.mass_m.max() / fit.mass_m.mean()),
        "nearest_imbalance_factor": imbalance_factor(fit.mass_m),
        "coarse": {
            str(n): {"load": coarse.load_n.round(4).tolist(), "slack_used": round(coarse.slack_used, 4)}
            for n, coarse in maps.items()
        },
    }
    return clustering, summary
