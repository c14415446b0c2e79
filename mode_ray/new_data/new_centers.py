"""Extends a clustering by fine centers for captions that are far from all its centers.

The centers, prices, sizes and maps of the parent come first, unchanged. A caption that is not nearer to a new center
keeps its fine cluster, and an expert keeps the centers that it was trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.search.nearest import Float32Array, Int32Array, NearestCenters
from mode_ray.config.cluster import ClusterConfig
from mode_ray.errors import DataError, UsageError

EXTENSIONS_KEY = "extensions"


@dataclass(frozen=True)
class FarCaptions:
    """The number of captions that are far from every center.

    Attributes:
        assigned_rows: Number of all captions.
        far_rows: Number of far captions.
        far_quantile: Quantile of the fitted sample's squared distances above which a caption is far.
        far_squared_distance: The value of that quantile.
    """

    assigned_rows: int
    far_rows: int
    far_quantile: float
    far_squared_distance: float

    def check_enough(self, distinct: int, k: int) -> None:
        """Check that k centers can be fitted on the far captions, at most `distinct` of which are unique.

        Raises:
            DataError: There are too few.
        """
        if distinct < k:
            raise DataError(
                f"{self.far_rows:,} of {self.assigned_rows:,} captions are far (squared distance above "
                f"{self.far_squared_distance:.4f}), at most {distinct:,} of them distinct: too few for {k} new "
                "centers. Lower --centers or --far-quantile, or extend after adding captions"
            )


@dataclass(frozen=True)
class NewCenters:
    """Fine centers to append.

    Attributes:
        centers_kd: float32 [k, d].
        prices_k: float64 [k], from their own fit, with mean 0.
        mass_k: int64 [k], rows of the fit by nearest center, among old and new centers.
        squared_distance_k: float64 [k], sum of the squared distances of those rows.
        fitted_rows: Far rows in the fit.
        distinct_rows: Distinct rows among them.
        rows_nearer_to_old: Far rows whose nearest center is an old one; no center counts them.
    """

    centers_kd: Float32Array
    prices_k: npt.NDArray[np.float64]
    mass_k: npt.NDArray[np.int64]
    squared_distance_k: npt.NDArray[np.float64]
    fitted_rows: int
    distinct_rows: int
    rows_nearer_to_old: int


def fit_new_centers(
    parent: Clustering, far_nd: npt.NDArray[np.floating], count: FarCaptions, k: int, config: ClusterConfig
) -> NewCenters:
    """Fit k centers on far captions, with the settings of the config's fine clustering.

    Args:
        parent: The clustering to extend.
        far_nd: Embeddings of all far captions or a uniform sample, floats [n, d].
        count: Number of far captions.
        k: Number of new centers.
        config: Settings of the fit; `fine.centers` is ignored.

    Raises:
        DataError: Fewer distinct rows than k.
    """
    from mode_ray.cluster.fit.balance import (
        multiplicity,
        row_hashes,
    )  # these import torch, which the driver does not need
    from mode_ray.cluster.fit.kmeans import fit_fine

    distinct = len(multiplicity(row_hashes(far_nd))[0])
    count.check_enough(distinct, k)
    threads = config.placement.threads
    fit = fit_fine(far_nd, config.fine.model_copy(update={"centers": k}), config.seed, threads)
    m = len(parent.centers_md)
    both = NearestCenters(np.concatenate([parent.centers_md, fit.centers_md]), None, threads)
    fine_n, squared_distance_n = both.search(far_nd)
    new_n = fine_n >= m
    return NewCenters(
        centers_kd=fit.centers_md,
        prices_k=fit.prices_m,
        mass_k=np.bincount(fine_n[new_n] - m, minlength=k).astype(np.int64),
        squared_distance_k=np.bincount(fine_n[new_n] - m, squared_distance_n[new_n], k).astype(np.float64),
        fitted_rows=len(far_nd),
        distinct_rows=distinct,
        rows_nearer_to_old=int((~new_n).sum()),
    )


def check_new_expert(parent: Clustering, n: int) -> None:
    """Check that an expert can be added to the map of n experts.

    Raises:
        UsageError: There is no map for n, or one for n + 1 exists.
    """
    parent.experts_of(n)
    if n + 1 in parent.coarse:
        raise UsageError(
            f"the clustering already has a map for {n + 1} experts, so no expert can be added to train.experts={n}: "
            f"set train.experts to {max(parent.coarse)}, its largest map, or omit --new-expert"
        )


def extended(
    parent: Clustering, new: NewCenters, expert_beside: int | None, provenance: Mapping[str, Any]
) -> Clustering:
    """A clustering with additional centers, of ids m to m + k - 1.

    In every map, each new center joins the expert with the nearest centroid. The training figures, including the
    quantiles, are those of the parent: "far" still refers to the first fit.

    Args:
        parent: The clustering to extend; unchanged.
        new: The new centers.
        expert_beside: If set, add a map of `expert_beside` + 1 experts: the last expert owns exactly the new centers,
            and the others own the parent's.
        provenance: Record of this extension, JSON values.

    Raises:
        UsageError: As `check_new_expert`.
    """
    maps = {n: np.concatenate([group_m, _nearest_experts(parent, n, new)]) for n, group_m in parent.coarse.items()}
    if expert_beside is not None:
        check_new_expert(parent, expert_beside)
        own_k = np.full(len(new.centers_kd), expert_beside, np.int32)
        maps[expert_beside + 1] = np.concatenate([parent.coarse[expert_beside], own_k])
    return Clustering(
        centers_md=np.concatenate([parent.centers_md, new.centers_kd]),
        prices_m=np.concatenate([parent.prices_m, new.prices_k]),
        mass_m=np.concatenate([parent.mass_m, new.mass_k]),
        squared_distance_m=np.concatenate([parent.squared_distance_m, new.squared_distance_k]),
        encoder_name=parent.encoder_name,
        coarse=maps,
        training={
            **parent.training,
            EXTENSIONS_KEY: [*parent.training.get(EXTENSIONS_KEY, []), dict(provenance)],
        },
    )


def _nearest_experts(parent: Clustering, n: int, new: NewCenters) -> Int32Array:
    """The expert with the nearest mass-weighted centroid for each new center, int32 [k]."""
    group_m = parent.experts_of(n)
    centroids = []
    for expert in range(n):
        members = group_m == expert
        mass_s = parent.mass_m[members]
        # The centroid of an expert without rows is the plain mean of its centers.
        centroids.append(np.average(parent.centers_md[members], axis=0, weights=mass_s if mass_s.any() else None))
    distance_kn = np.square(new.centers_kd[:, None] - np.stack(centroids)[None]).sum(axis=2)
    return np.asarray(distance_kn.argmin(axis=1), np.int32)
