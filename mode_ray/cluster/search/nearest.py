"""Exact nearest-center search on CPUs, compiled and pruned."""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mode_ray.errors import UsageError
from mode_ray.util.threads import limited_threads

if TYPE_CHECKING:
    from mode_ray.cluster.search import kernels
    from mode_ray.cluster.search.projection import Projection

# 2 MB of bounds: the result of the matrix product is still in the cache when the compiled loops read it.
_BOUNDS_PER_BATCH = 524_288
_MIN_ROWS_PER_BATCH = 128
_TASKS_PER_THREAD = 32
_MOST_ROWS_PER_BATCH = 32_768
# Far above the float32 error of a bound (about 1e-6), far below the gaps between distances.
_SLACK = 1e-5

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
# Heads and tails of the projections of vectors; see `Projection.split`.
Parts = tuple[Float32Array, Float32Array]


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


class NearestCenters:
    """Exact search for the center with the smallest squared L2 distance plus price; ties go to the lowest id.

    A result depends only on its vector and the centers, to the last bit on processors of one kind; not on batches,
    threads or hints.

    Args:
        centers_md: float32 [m, d].
        prices_m: [m], in units of squared distance; None for the plain nearest center.
        threads: CPU threads of a search.
        projection: Projection for the lower bounds; by default fitted to the centers.

    Raises:
        ValueError: A center or price is not finite, or shapes do not fit.
    """

    def __init__(
        self,
        centers_md: Float32Array,
        prices_m: npt.NDArray[np.floating] | None = None,
        threads: int = 1,
        projection: "Projection | None" = None,
    ) -> None:
        import torch

        from mode_ray.cluster.search.projection import CENTERS_SHARES, Projection

        self._centers_md, self._prices_m = checked_centers(centers_md, prices_m)
        self._threads = threads
        self._projection = projection or Projection.fit(self._centers_md, CENTERS_SHARES)
        centers = torch.from_numpy(self._centers_md)
        heads_mh, tails_mt = self._projection.parts(centers)
        squared_m = heads_mh.square().sum(dim=1)
        self._heads_hm = heads_mh.T.contiguous()
        self._lengths_m, self._tails_mt = heads_mh[:, -1].numpy().copy(), tails_mt.contiguous().numpy()
        self._bias_m = squared_m + torch.from_numpy(self._prices_m)
        self._scale = float(squared_m.max()) + float(np.abs(self._prices_m).max())
        rows = _BOUNDS_PER_BATCH // len(self._centers_md)
        self._rows_per_batch = min(_MOST_ROWS_PER_BATCH, max(_MIN_ROWS_PER_BATCH, rows))

    def search(
        self,
        vectors_bd: npt.NDArray[np.floating],
        parts_b: Parts | None = None,
        hint_b: Int32Array | None = None,
    ) -> tuple[Int32Array, Float32Array]:
        """The best center of every vector.

        Args:
            vectors_bd: Floats [b, d].
            parts_b: Their projections, if already computed.
            hint_b: int32 [b], a likely best center of each vector, to speed up the search; -1 for none.

        Returns:
            fine_b: int32 [b], ids of centers by squared distance plus price.
            squared_distance_b: float32 [b], squared L2 distance to that center without its price.

        Raises:
            ValueError: A vector is NaN or infinite, or of another dimension than the centers.
        """
        from mode_ray.cluster.search import kernels

        count = len(vectors_bd)
        fine_b, squared_distance_b = np.empty(count, np.int32), np.empty(count, np.float32)
        hints = np.full(count, -1, np.int32) if hint_b is None else hint_b

        def search_some(rows: slice, bounded: "kernels.Bounded") -> None:
            kernels.nearest(bounded, hints[rows], fine_b[rows], squared_distance_b[rows])

        self._each_batch(vectors_bd, parts_b, search_some)
        return fine_b, squared_distance_b

    def candidates(
        self,
        vectors_bd: npt.NDArray[np.floating],
        reach: float,
        width: int,
        parts_b: Parts | None = None,
        hint_b: Int32Array | None = None,
    ) -> tuple[Int32Array, Float32Array, Int32Array]:
        """The centers whose squared distance plus price is within `reach` of the best, the best first.

        Args:
            vectors_bd: Floats [b, d].
            reach: In units of squared distance.
            width: k, the most candidates per vector; the best k are kept.
            parts_b: As in `search`.
            hint_b: As in `search`.

        Returns:
            fine_bk: int32 [b, k], filled up to count_b.
            squared_distance_bk: float32 [b, k], without prices, filled up to count_b.
            count_b: int32 [b].

        Raises:
            ValueError: As in `search`.
        """
        from mode_ray.cluster.search import kernels

        count = len(vectors_bd)
        fine_b, squared_distance_b = np.empty(count, np.int32), np.empty(count, np.float32)
        fine_bk, squared_distance_bk = np.zeros((count, width), np.int32), np.zeros((count, width), np.float32)
        count_b = np.empty(count, np.int32)
        hints = np.full(count, -1, np.int32) if hint_b is None else hint_b

        def find_some(rows: slice, bounded: "kernels.Bounded") -> None:
            kernels.nearest(bounded, hints[rows], fine_b[rows], squared_distance_b[rows])
            best = (fine_b[rows], squared_distance_b[rows])
            kernels.candidates(bounded, *best, reach, (fine_bk[rows], squared_distance_bk[rows], count_b[rows]))

        self._each_batch(vectors_bd, parts_b, find_some)
        return fine_bk, squared_distance_bk, count_b

    def _each_batch(
        self,
        vectors_bd: npt.NDArray[np.floating],
        parts_b: Parts | None,
        work: "Callable[[slice, kernels.Bounded], None]",
    ) -> None:
        """Call `work` with each range of rows and its bounds."""
        import torch

        if vectors_bd.ndim != 2 or vectors_bd.shape[1] != self._centers_md.shape[1]:
            raise ValueError(
                f"vectors of shape {vectors_bd.shape} do not fit centers of dimension {self._centers_md.shape[1]}"
            )

        def bound(start: int) -> None:
            rows = slice(start, min(start + self._rows_per_batch, len(vectors_bd)))
            batch = torch.from_numpy(np.array(vectors_bd[rows])).float()  # a copy: arrow's memory is read-only
            if parts_b is None:
                heads_bh, tails_bt = self._projection.parts(batch)
            else:
                heads_bh, tails_bt = (torch.from_numpy(part[rows]) for part in parts_b)
            squared_b = torch.linalg.vecdot(heads_bh, heads_bh)
            finite_b = torch.isfinite(squared_b)
            if not finite_b.all():
                bad = start + int((~finite_b).to(torch.uint8).argmax())
                raise ValueError(f"{int((~finite_b).sum())} vectors are NaN or infinite, the first at row {bad}")
            bounds_bm = torch.addmm(self._bias_m, heads_bh, self._heads_hm, alpha=-2.0).numpy()
            slack_b = (_SLACK * (squared_b + self._scale) - squared_b).numpy()
            tails = (
                heads_bh[:, -1].contiguous().numpy(),
                self._lengths_m,
                tails_bt.contiguous().numpy(),
                self._tails_mt,
            )
            work(rows, (bounds_bm, *tails, batch.numpy(), self._centers_md, self._prices_m, slack_b))

        def bound_each(starts: range) -> None:
            for start in starts:
                bound(start)

        starts = range(0, len(vectors_bd), self._rows_per_batch)
        # Threads process batches with single-threaded arithmetic, so compiled loops and matrix products overlap.
        with limited_threads(1):
            if self._threads == 1 or len(starts) < 2:
                bound_each(starts)
                return
            # Several batches per task, because each task has a cost; few enough that the threads finish together.
            per_task = max(1, len(starts) // (self._threads * _TASKS_PER_THREAD))
            tasks = [starts[first : first + per_task] for first in range(0, len(starts), per_task)]
            with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as threads:
                for done in [threads.submit(bound_each, task) for task in tasks]:
                    done.result()


def checked_centers(
    centers_md: Float32Array, prices_m: npt.NDArray[np.floating] | None
) -> tuple[Float32Array, Float32Array]:
    """Centers and prices as contiguous float32 arrays; prices default to 0.

    Raises:
        ValueError: A center or price is not finite, or shapes do not fit.
    """
    centers_md = np.ascontiguousarray(centers_md, np.float32)
    if centers_md.ndim != 2 or not len(centers_md):
        raise ValueError(f"centers must be a non-empty [m, d] array, not {centers_md.shape}")
    prices = np.zeros(len(centers_md), np.float32) if prices_m is None else np.asarray(prices_m, np.float32)
    if prices.shape != (len(centers_md),):
        raise ValueError(f"{len(centers_md)} centers need as many prices, not {prices.shape}")
    if not (np.isfinite(centers_md).all() and np.isfinite(prices).all()):
        raise ValueError("a center or price is NaN or infinite")
    return centers_md, prices
