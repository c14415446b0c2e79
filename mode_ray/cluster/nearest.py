"""Nearest-center search: the one place that imports faiss."""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import numpy.typing as npt

from mode_ray.errors import UsageError

_ROWS_PER_BATCH = 32_768

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


def import_faiss() -> ModuleType:
    """The faiss module.

    Raises:
        UsageError: Neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise UsageError(
            "faiss is not installed: run `pip install 'mode_ray[cpu]'`, "
            "or `pip install 'mode_ray[gpu]'` on a GPU machine"
        ) from None


@contextlib.contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Let faiss and torch use `threads` threads within the block; the old settings come back after it."""
    import torch  # the driver imports this module for the clustering's types, and has no use for torch

    faiss = import_faiss()
    faiss_before, torch_before = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(faiss_before)
        torch.set_num_threads(torch_before)


class NearestCenters:
    """Exact search for the center with the smallest squared L2 distance plus price.

    A price is one more coordinate: sqrt(price - lowest price) on the center's side and 0 on the vector's
    adds exactly the price, up to a constant, to the squared distance. Of equal centers only the first takes
    part, so that ties between them go to the lowest id whatever the order of the arithmetic.

    Args:
        centers_md: float32 [m, d].
        prices_m: [m], in units of squared distance; None for the plain nearest center.
        threads: CPU threads of a search.

    Raises:
        ValueError: A center or price is not finite, or shapes do not fit.
        UsageError: faiss is not installed.
    """

    def __init__(
        self, centers_md: Float32Array, prices_m: npt.NDArray[np.floating] | None = None, threads: int = 1
    ) -> None:
        centers_md = np.asarray(centers_md, np.float32)
        if centers_md.ndim != 2 or not len(centers_md):
            raise ValueError(f"centers must be a non-empty [m, d] array, not {centers_md.shape}")
        prices_m = np.zeros(len(centers_md)) if prices_m is None else np.asarray(prices_m, np.float64)
        if prices_m.shape != (len(centers_md),):
            raise ValueError(f"{len(centers_md)} centers need as many prices, not {prices_m.shape}")
        if not (np.isfinite(centers_md).all() and np.isfinite(prices_m).all()):
            raise ValueError("a center or price is NaN or infinite")
        surcharge_m = prices_m - prices_m.min()
        self._priced = bool(surcharge_m.any())
        # Adding 0.0 turns -0.0 into 0.0, so that equal rows are equal bytes too.
        rows = np.column_stack([centers_md, np.sqrt(surcharge_m)]).astype(np.float32) + np.float32(0.0)
        self._id_of_row = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        rows = rows[self._id_of_row]
        self._surcharge_of_row = np.square(rows[:, -1])
        if not self._priced:
            rows = rows[:, :-1]
        self._dimension = centers_md.shape[1]
        self._threads = threads
        self._index = import_faiss().IndexFlatL2(rows.shape[1])
        self._index.add(np.ascontiguousarray(rows))

    def search(self, vectors_bd: npt.NDArray[np.floating]) -> tuple[Int32Array, Float32Array]:
        """The best center of every vector.

        Returns:
            fine_b: int32 [b], ids of centers by squared distance plus price.
            squared_distance_b: float32 [b], squared L2 distance to that center without its price; never
            negative.

        Raises:
            ValueError: A vector is NaN or infinite, or of another dimension than the centers.
        """
        fine_b1, squared_distance_b1 = self.candidates(vectors_bd, 1)
        return fine_b1[:, 0], squared_distance_b1[:, 0]

    def candidates(self, vectors_bd: npt.NDArray[np.floating], count: int) -> tuple[Int32Array, Float32Array]:
        """The `count` best centers of every vector (all where there are fewer), best first.

        Returns:
            fine_bk: int32 [b, k]; squared_distance_bk: float32 [b, k], without prices.

        Raises:
            ValueError: As in `search`.
        """
        if vectors_bd.ndim != 2 or vectors_bd.shape[1] != self._dimension:
            raise ValueError(f"vectors of shape {vectors_bd.shape} do not fit centers of dimension {self._dimension}")
        count = min(count, len(self._id_of_row))
        fine_bk = np.empty((len(vectors_bd), count), np.int32)
        squared_distance_bk = np.empty((len(vectors_bd), count), np.float32)
        with limited_threads(self._threads):
            for start in range(0, len(vectors_bd), _ROWS_PER_BATCH):
                rows = slice(start, start + _ROWS_PER_BATCH)
                total_bk, row_bk = self._index.search(self._query(vectors_bd[rows], start), count)
                fine_bk[rows] = self._id_of_row[row_bk]
                unpriced_bk = total_bk - self._surcharge_of_row[row_bk] if self._priced else total_bk
                # |x|^2 - 2xc + |c|^2 in float32 may come out a little below zero.
                np.maximum(unpriced_bk, 0.0, out=squared_distance_bk[rows])
        return fine_bk, squared_distance_bk

    def _query(self, vectors_bd: npt.NDArray[np.floating], first_row: int) -> Float32Array:
        query = np.zeros((len(vectors_bd), self._dimension + self._priced), np.float32)
        query[:, : self._dimension] = vectors_bd
        finite_b = np.isfinite(query).all(axis=1)
        if not finite_b.all():
            bad = np.flatnonzero(~finite_b)
            raise ValueError(f"{len(bad)} vectors are NaN or infinite, the first at row {first_row + bad[0]}")
        return query
