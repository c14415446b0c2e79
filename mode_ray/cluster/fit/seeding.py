"""The first centers of k-means."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.cluster.fit.balance import multiplicity
from mode_ray.cluster.fit.sample_rows import SampleRows
from mode_ray.cluster.fit_size import seeding_rows_at_most
from mode_ray.cluster.search.nearest import Float32Array

MAX_CENTERS_OF_PLUS_PLUS = 4096

InitMethod = Literal["kmeans++", "random"]


def initial_centers(
    sample: SampleRows, hash_n: npt.NDArray[np.uint64], m: int, method: InitMethod, rng: np.random.Generator
) -> Float32Array:
    """Choose m distinct rows as first centers.

    `kmeans++` is the greedy variant: it draws several rows in proportion to the squared distance, and keeps the best.
    It works on a uniform sub-sample of 16 rows per center, at least 16,384.

    Returns:
        float32 [m, d].

    Raises:
        ValueError: Fewer than m distinct rows.
    """
    rows, enough = np.arange(len(hash_n)), seeding_rows_at_most(m)
    if len(rows) > enough:
        rows = np.sort(rng.choice(len(rows), enough, replace=False))
    distinct = rows[multiplicity(hash_n[rows])[0]]
    if len(distinct) < m:
        distinct = multiplicity(hash_n)[0]
    if len(distinct) < m:
        raise ValueError(f"{len(distinct)} distinct rows are fewer than m={m} centers")
    if method == "random":
        return sample.take(np.sort(rng.choice(distinct, m, replace=False)))
    if len(distinct) > enough:
        distinct = np.sort(rng.choice(distinct, enough, replace=False))
    rows_ud = sample.take(distinct)
    return rows_ud[_greedy_plus_plus(rows_ud, m, rng)]


def _greedy_plus_plus(rows_ud: Float32Array, m: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    rows = torch.from_numpy(rows_ud)
    norms_u = rows.square().sum(dim=1)
    trials = 2 + int(np.log(m))
    chosen = np.empty(m, np.intp)
    distance_u = torch.full((len(rows),), float("inf"))
    draws = rng.integers(len(rows), size=1)
    for position in range(m):
        drawn = torch.from_numpy(draws)
        to_drawn_ut = torch.addmm(norms_u[:, None] + norms_u[drawn], rows, rows[drawn].T, alpha=-2.0)
        # Distinct rows keep a positive probability even if their distance is 0 in float32.
        reduced_ut = torch.minimum(to_drawn_ut.clamp_(min=1e-12), distance_u[:, None])
        best = int(reduced_ut.sum(dim=0).argmin())
        chosen[position] = draws[best]
        distance_u = reduced_ut[:, best].contiguous()
        distance_u[chosen[: position + 1]] = 0.0
        cumulative_u = torch.cumsum(distance_u, 0, dtype=torch.float64).numpy()
        draws = np.searchsorted(cumulative_u, rng.random(trials) * cumulative_u[-1], side="right")
        draws = np.minimum(draws, len(rows) - 1)
    return chosen
