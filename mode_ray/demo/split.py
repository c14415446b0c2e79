"""Which pairs are held out: whole concepts and whole drawings, the same share of every kind."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mode_ray.demo.pairs import stable_hash

_BLOCK_PIXELS = 4
NEAR_DRAWING_LEVELS = 4.0
"""Two images whose block means differ by less (root mean square, of 255 grey levels) count as one drawing:
re-encodings of one picture measured below 2.1, distinct icons of one design family from 3.8 up."""


def group_drawings(concepts: Sequence[str], pixels_nhwc: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Group images that share a concept or look the same, directly or through other images.

    Args:
        concepts: What each of the n images shows.
        pixels_nhwc: uint8, n x side x side x 3, side a multiple of 4.

    Returns:
        int64 [n]: number of each image's group.
    """
    first_of_concept: dict[str, int] = {}
    leaders = np.array([first_of_concept.setdefault(name, row) for row, name in enumerate(concepts)], dtype=np.int64)
    near_rows, near_columns = np.nonzero(_near(pixels_nhwc))
    rows = np.concatenate([np.arange(len(leaders)), near_rows])
    columns = np.concatenate([leaders, near_columns])
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(len(leaders), len(leaders)))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, dtype=np.int64)


def hold_out(
    groups_n: NDArray[np.int64], keys: Sequence[str], strata: Sequence[str], share: float, seed: int
) -> NDArray[np.bool_]:
    """Choose whole groups, as nearly as possible the same share of every stratum.

    The groups are sorted by stratum, then by hash, and chosen at equal steps.

    Args:
        groups_n: Group of each image.
        keys: Name of each image; a group has the name of its first image.
        strata: Kind of each image; a group has the kind of its first image.
        share: Share of the groups to hold out.
        seed: Of the order within a stratum.

    Returns:
        bool [n]: whether each image is held out.
    """
    leaders: dict[int, int] = {}
    for row in sorted(range(len(keys)), key=lambda row: keys[row]):
        leaders.setdefault(int(groups_n[row]), row)
    ordered = sorted(leaders, key=lambda group: (strata[leaders[group]], stable_hash(seed, keys[leaders[group]])))
    steps = np.floor(np.arange(len(ordered) + 1) * share + 0.5)
    chosen = np.asarray(ordered, dtype=np.int64)[np.diff(steps) > 0]
    return np.isin(groups_n, chosen)


def _near(pixels_nhwc: NDArray[np.uint8]) -> NDArray[np.bool_]:
    count, side = pixels_nhwc.shape[:2]
    blocks = side // _BLOCK_PIXELS
    tiles = pixels_nhwc.reshape(count, blocks, _BLOCK_PIXELS, blocks, _BLOCK_PIXELS, 3)
    means_nd = tiles.mean(axis=(2, 4), dtype=np.float32).reshape(count, -1)
    squares_n = np.einsum("nd,nd->n", means_nd, means_nd)
    squared_distance_nn = squares_n[:, None] + squares_n[None, :] - 2.0 * (means_nd @ means_nd.T)
    return np.asarray(squared_distance_nn < NEAR_DRAWING_LEVELS**2 * means_nd.shape[1], dtype=np.bool_)
