"""The rows that a fit reads: the interface, and the implementation in one process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.cluster.fit.balance import row_hashes
from mode_ray.cluster.fit.sums import Float64Array, PartialSums
from mode_ray.cluster.fit_size import CANDIDATES_PER_ROW
from mode_ray.cluster.search import kernels
from mode_ray.cluster.search.nearest import Float32Array, Int32Array, NearestCenters, Parts
from mode_ray.cluster.search.projection import CANDIDATES_SHARES, ROWS_SHARES, Projection
from mode_ray.util.threads import limited_threads

_ROWS_PER_BATCH = 16_384
# Small enough to stay in a core's cache between the steps of a projection.
_ROWS_PER_PROJECTION = 2_048
# Distances are rounded to multiples of this step, which float64 adds exactly.
DISTANCE_STEP = 2.0**-24
HISTOGRAM_BINS = 16_384
HISTOGRAM_END = 4.0

Vectors = npt.NDArray[np.floating]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class CandidateSearch:
    """One search for the centers that each row may be assigned to while prices change and centers are fixed.

    Every call that needs the result carries the search, so that a restarted actor can repeat it.

    Attributes:
        number: Identifies the search within its fit.
        centers_md: float32 [m, d].
        prices_m: float64 [m], the prices before they change.
        reach: Candidates are within this of the best squared distance plus price.
        heavy_hashes: uint64 [h], ascending, hashes of the rows with a weight below 1; see `capped_weights`.
        heavy_weights: float32 [h], their weights.
    """

    number: int
    centers_md: Float32Array
    prices_m: Float64Array
    reach: float
    heavy_hashes: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    heavy_weights: Float32Array = field(default_factory=lambda: np.empty(0, np.float32))


def chosen_rows(hash_n: Hashes, every: int) -> npt.NDArray[np.bool_]:
    """About every 2nd, 4th, … row, bool [n]; equal rows are chosen together, wherever they are."""
    chosen_n: npt.NDArray[np.bool_] = hash_n % np.uint64(every) == 0
    return chosen_n


class SampleRows(Protocol):
    """Rows of a sample, in a fixed order. Results do not depend on how the rows are distributed to processes."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    def hashes(self) -> Hashes:
        """`row_hashes` of the rows: uint64 [n].

        Raises:
            ValueError: A row is NaN or infinite.
        """
        ...

    def take(self, positions: npt.NDArray[np.integer]) -> Float32Array:
        """The rows at ascending positions, float32 [len(positions), d]."""
        ...

    def nearest_sums(self, centers_md: Float32Array, every: int = 1) -> PartialSums:
        """Sums of the rows by nearest center: one exact Lloyd step, or one on about every 4th row with `every` 4."""
        ...

    def priced_sums(self, search: CandidateSearch, prices_m: Float64Array) -> PartialSums:
        """Sums of the rows by best candidate under prices."""
        ...

    def sizes(self, search: CandidateSearch, prices_m: Float64Array) -> Float64Array:
        """Weight of the rows by best candidate under prices: float64 [m]."""
        ...

    def distance_histogram(self, centers_md: Float32Array) -> npt.NDArray[np.int64]:
        """Counts of squared distances to the nearest centers in 16,384 equal bins over 0 to 4; the last is open."""
        ...


class _Candidates(NamedTuple):
    """Result of a `CandidateSearch`; see `NearestCenters.candidates`."""

    search_number: int
    fine_nk: Int32Array
    squared_distance_nk: Float32Array
    count_n: Int32Array


class LocalRows:
    """Rows in this process's memory; see `SampleRows`.

    Rows are kept as float16, as embedding shards store them. Each assignment is a hint for the next search, and the
    sums of the rows are updated only by the rows whose center changed.

    Args:
        vectors_nd: Floats [n, d].
        threads: CPU threads.
    """

    def __init__(self, vectors_nd: Vectors, threads: int = 1) -> None:
        self._vectors_nd = np.ascontiguousarray(vectors_nd, np.float16)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._shares = ROWS_SHARES
        self._projected: tuple[Projection, Parts] | None = None
        self._fine_n = np.full(len(vectors_nd), -1, np.int32)
        self._sums_md = np.zeros((0, vectors_nd.shape[1]))
        self._candidates: _Candidates | None = None
        self._weights_n: Float32Array | None = None
        self._thinned: LocalRows | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._vectors_nd)

    def hashes(self) -> Hashes:
        """See `SampleRows`."""
        hash_n = np.empty(self.rows, np.uint64)

        def hash_batch(rows: slice) -> None:
            batch_bd = self._vectors_nd[rows]
            if not np.isfinite(batch_bd).all():
                end = rows.start + len(batch_bd)
                raise ValueError(f"NaN or infinite values in rows {rows.start} to {end} of the sample")
            hash_n[rows] = row_hashes(batch_bd)

        self._in_batches(hash_batch)
        return hash_n

    def take(self, positions: npt.NDArray[np.integer]) -> Float32Array:
        """See `SampleRows`."""
        taken_nd: Float32Array = self._vectors_nd[positions].astype(np.float32)
        return taken_nd

    def nearest_sums(self, centers_md: Float32Array, every: int = 1) -> PartialSums:
        """See `SampleRows`."""
        if every > 1:
            if self._thinned is None:
                self._thinned = LocalRows(self._vectors_nd[chosen_rows(self.hashes(), every)], self._threads)
            return self._thinned.nearest_sums(centers_md)
        self._thinned = None
        return self._sums(*self._assign_nearest(centers_md), len(centers_md))

    def priced_sums(self, search: CandidateSearch, prices_m: Float64Array) -> PartialSums:
        """See `SampleRows`."""
        return self._sums(*self._assign_candidates(search, prices_m), len(prices_m))

    def sizes(self, search: CandidateSearch, prices_m: Float64Array) -> Float64Array:
        """See `SampleRows`."""
        fine_n, _ = self._assign_candidates(search, prices_m)
        return np.bincount(fine_n, self.weights(search), minlength=len(prices_m)).astype(np.float64)

    def distance_histogram(self, centers_md: Float32Array) -> npt.NDArray[np.int64]:
        """See `SampleRows`."""
        _, squared_distance_n = self._assign_nearest(centers_md)
        bins_n = np.minimum(squared_distance_n * (HISTOGRAM_BINS / HISTOGRAM_END), HISTOGRAM_BINS - 1).astype(np.int64)
        return np.bincount(bins_n, minlength=HISTOGRAM_BINS)

    def _assign_nearest(self, centers_md: Float32Array) -> tuple[Int32Array, Float32Array]:
        """The nearest center of every row, int32 [n], and its squared distance, float32 [n]."""
        projection, parts_n = self._project()
        nearest = NearestCenters(centers_md, None, self._threads, projection)
        return nearest.search(self._vectors_nd, parts_n, self._hints(len(centers_md)))

    def _assign_candidates(self, search: CandidateSearch, prices_m: Float64Array) -> tuple[Int32Array, Float32Array]:
        """The best candidate of every row, int32 [n], and its squared distance without price, float32 [n]."""
        found = self._find_candidates(search)
        fine_n, squared_distance_n = np.empty(self.rows, np.int32), np.empty(self.rows, np.float32)
        prices = prices_m.astype(np.float32)

        def choose(rows: slice) -> None:
            batch = found.fine_nk[rows], found.squared_distance_nk[rows], found.count_n[rows]
            kernels.best_candidates(batch, prices, fine_n[rows], squared_distance_n[rows])

        self._in_batches(choose)
        return fine_n, squared_distance_n

    def _find_candidates(self, search: CandidateSearch) -> _Candidates:
        """The candidates of a search; those of the last search are kept."""
        if self._candidates is None or self._candidates.search_number != search.number:
            self._candidates = None  # freed first: the candidates are the largest arrays in memory
            if self._shares != CANDIDATES_SHARES:
                # Kept for nearest searches too: they are little slower with it, and projecting again would cost more.
                self._shares, self._projected = CANDIDATES_SHARES, None
            projection, parts_n = self._project()
            nearest = NearestCenters(search.centers_md, search.prices_m, self._threads, projection)
            hints = self._hints(len(search.centers_md))
            found = nearest.candidates(self._vectors_nd, search.reach, CANDIDATES_PER_ROW, parts_n, hints)
            self._candidates = _Candidates(search.number, *found)
        return self._candidates

    def _hints(self, m: int) -> Int32Array:
        return np.minimum(self._fine_n, np.int32(m - 1))

    def _project(self) -> tuple[Projection, Parts]:
        """The projection of the rows, computed once for `_shares`."""
        if self._projected is None:
            projection = Projection.fit(self._vectors_nd, self._shares)
            heads = np.empty((self.rows, projection.head + 1), np.float32)
            tails = np.empty((self.rows, projection.dimension - projection.head), np.float32)

            def project(rows: slice) -> None:
                heads_bh, tails_bt = projection.parts(torch.from_numpy(self._vectors_nd[rows]).float())
                heads[rows], tails[rows] = heads_bh.numpy(), tails_bt.numpy()

            with limited_threads(1):
                self._in_batches(project, _ROWS_PER_PROJECTION)
            self._projected = projection, (heads, tails)
        return self._projected

    def _sums(self, fine_n: Int32Array, squared_distance_n: Float32Array, m: int) -> PartialSums:
        """The sums of an assignment, from those of the assignment before it."""
        if len(self._sums_md) != m:
            self._sums_md = np.zeros((m, self._vectors_nd.shape[1]))
            self._fine_n.fill(-1)
        before_n, columns_per_thread = self._fine_n, -(-self._sums_md.shape[1] // self._threads)

        def move(first: int) -> None:
            columns = slice(first, first + columns_per_thread)
            for start in range(0, self.rows, _ROWS_PER_BATCH):
                rows = slice(start, start + _ROWS_PER_BATCH)
                moved = np.flatnonzero(before_n[rows] != fine_n[rows])
                vectors = torch.from_numpy(self._vectors_nd[rows, columns][moved]).float().numpy()
                kernels.move_rows(vectors, before_n[rows][moved], fine_n[rows][moved], first, self._sums_md)

        for _ in self._pool.map(move, range(0, self._sums_md.shape[1], columns_per_thread)):
            pass
        self._fine_n = fine_n
        exact_n = np.round(squared_distance_n.astype(np.float64) / DISTANCE_STEP) * DISTANCE_STEP
        return PartialSums(
            self._sums_md.copy(),
            np.bincount(fine_n, minlength=m).astype(np.int64),
            np.bincount(fine_n, exact_n, minlength=m).astype(np.float64),
        )

    def weights(self, search: CandidateSearch) -> Float32Array | None:
        """Weight of every row, float32 [n]; None if all are 1. They are the same in all searches of a fit."""
        if not len(search.heavy_hashes):
            return None
        if self._weights_n is None:
            hash_n = self.hashes()
            place_n = np.minimum(np.searchsorted(search.heavy_hashes, hash_n), len(search.heavy_hashes) - 1)
            heavy_n = search.heavy_hashes[place_n] == hash_n
            self._weights_n = np.where(heavy_n, search.heavy_weights[place_n], 1.0).astype(np.float32)
        return self._weights_n

    def _in_batches(self, work: Callable[[slice], None], rows_per_batch: int = _ROWS_PER_BATCH) -> None:
        """Call `work` for ranges of rows, on all threads."""
        starts = range(0, self.rows, rows_per_batch)
        for _ in self._pool.map(lambda start: work(slice(start, start + rows_per_batch)), starts):
            pass
