"""The rows of a sample on a GPU."""

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.cluster.fit.sample_rows import (
    DISTANCE_STEP,
    HISTOGRAM_BINS,
    HISTOGRAM_END,
    CandidateSearch,
    LocalRows,
    SampleRows,
    Vectors,
    chosen_rows,
)
from mode_ray.cluster.fit.sums import Float64Array, PartialSums
from mode_ray.cluster.fit_size import CANDIDATES_PER_ROW
from mode_ray.cluster.search.dense import DenseSearch
from mode_ray.cluster.search.nearest import Float32Array
from mode_ray.config.cluster import ClusterPlacement
from mode_ray.util.devices import pick_device

_ROWS_PER_SUM = 65_536
_ROWS_PER_SEARCH = 1 << 20


def sample_rows(vectors_nd: Vectors, placement: ClusterPlacement) -> SampleRows:
    """The rows in this process: on the GPU that Ray granted if the placement asks for one, else in main memory.

    Raises:
        UsageError: The GPU cannot be used.
    """
    if not placement.gpus:
        return LocalRows(vectors_nd, placement.threads)
    return DeviceRows(vectors_nd, pick_device("auto"), placement.threads)


class DeviceRows:
    """`LocalRows` that are searched and added on a device. See `SampleRows`.

    Sums are as exact as there: of float16 values in float64, in any order.

    Args:
        vectors_nd: Floats [n, d].
        device: Where to compute; its memory must hold the rows in float16, and 140 bytes a row in a balanced fit.
        threads: CPU threads.
    """

    def __init__(self, vectors_nd: Vectors, device: torch.device, threads: int = 1) -> None:
        self._local = LocalRows(vectors_nd, threads)
        self._device = device
        self._vectors_nd = torch.from_numpy(np.ascontiguousarray(vectors_nd, np.float16)).to(device)
        self._candidates: tuple[int, torch.Tensor, torch.Tensor] | None = None
        self._weights_n: torch.Tensor | None = None
        self._thinned: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._local.rows

    def hashes(self) -> npt.NDArray[np.uint64]:
        """See `SampleRows`."""
        return self._local.hashes()

    def take(self, positions: npt.NDArray[np.integer]) -> Float32Array:
        """See `SampleRows`."""
        return self._local.take(positions)

    def nearest_sums(self, centers_md: Float32Array, every: int = 1) -> PartialSums:
        """See `SampleRows`."""
        if every > 1:
            if self._thinned is None:
                chosen_n = torch.from_numpy(chosen_rows(self.hashes(), every)).to(self._device)
                self._thinned = self._vectors_nd[chosen_n]
            vectors_nd = self._thinned
        else:
            self._thinned, vectors_nd = None, self._vectors_nd
        return self._sums(vectors_nd, *self._nearest(vectors_nd, centers_md), len(centers_md))

    def priced_sums(self, search: CandidateSearch, prices_m: Float64Array) -> PartialSums:
        """See `SampleRows`."""
        return self._sums(self._vectors_nd, *self._best_candidates(search, prices_m), len(prices_m))

    def sizes(self, search: CandidateSearch, prices_m: Float64Array) -> Float64Array:
        """See `SampleRows`."""
        fine_n, _ = self._best_candidates(search, prices_m)
        if self._weights_n is None and len(search.heavy_hashes):
            weights_n = self._local.weights(search)
            self._weights_n = torch.from_numpy(np.asarray(weights_n, np.float64)).to(self._device)
        return np.asarray(torch.bincount(fine_n, self._weights_n, len(prices_m)).cpu(), np.float64)

    def distance_histogram(self, centers_md: Float32Array) -> npt.NDArray[np.int64]:
        """See `SampleRows`."""
        _, squared_distance_n = self._nearest(self._vectors_nd, centers_md)
        bins_n = (squared_distance_n * (HISTOGRAM_BINS / HISTOGRAM_END)).clamp(max=HISTOGRAM_BINS - 1).long()
        return np.asarray(torch.bincount(bins_n, minlength=HISTOGRAM_BINS).cpu())

    def _nearest(self, vectors_nd: torch.Tensor, centers_md: Float32Array) -> tuple[torch.Tensor, torch.Tensor]:
        search = DenseSearch(centers_md, None, self._device)
        parts = [search.search_tensor(part) for part in torch.split(vectors_nd, _ROWS_PER_SEARCH)]
        fine_n, squared_distance_n = (torch.cat(part) for part in zip(*parts, strict=True))
        return fine_n, squared_distance_n

    def _best_candidates(self, search: CandidateSearch, prices_m: Float64Array) -> tuple[torch.Tensor, torch.Tensor]:
        fine_nk, squared_distance_nk = self._find_candidates(search)
        prices = torch.from_numpy(prices_m.astype(np.float32)).to(self._device)
        # Places without a candidate have an infinite distance, whatever the price.
        totals_nk = squared_distance_nk + prices[fine_nk]
        best_n1 = totals_nk.amin(dim=1, keepdim=True)
        fine_n = torch.where(totals_nk == best_n1, fine_nk, len(prices_m)).amin(dim=1)
        place_n1 = (fine_nk == fine_n[:, None]).to(torch.uint8).argmax(dim=1, keepdim=True)
        return fine_n, squared_distance_nk.gather(1, place_n1)[:, 0]

    def _find_candidates(self, search: CandidateSearch) -> tuple[torch.Tensor, torch.Tensor]:
        """The candidates of a search; those of the last search are kept."""
        if self._candidates is None or self._candidates[0] != search.number:
            self._candidates = None  # freed first: the candidates are the largest arrays in memory
            dense = DenseSearch(search.centers_md, search.prices_m, self._device)
            fine, distances = [], []
            for part in torch.split(self._vectors_nd, _ROWS_PER_SEARCH):
                fine_bk, squared_distance_bk, count_b = dense.candidates_tensor(part, search.reach, CANDIDATES_PER_ROW)
                place_k = torch.arange(CANDIDATES_PER_ROW, device=self._device)
                squared_distance_bk[place_k >= count_b[:, None]] = torch.inf
                fine.append(fine_bk)
                distances.append(squared_distance_bk)
            self._candidates = search.number, torch.cat(fine), torch.cat(distances)
        return self._candidates[1:]

    def _sums(
        self, vectors_nd: torch.Tensor, fine_n: torch.Tensor, squared_distance_n: torch.Tensor, m: int
    ) -> PartialSums:
        sums_md = torch.zeros((m, vectors_nd.shape[1]), dtype=torch.float64, device=self._device)
        for vectors, fine in zip(
            torch.split(vectors_nd, _ROWS_PER_SUM), torch.split(fine_n, _ROWS_PER_SUM), strict=True
        ):
            sums_md.index_add_(0, fine.long(), vectors.double())
        exact_n = (squared_distance_n.double() / DISTANCE_STEP).round() * DISTANCE_STEP
        return PartialSums(
            np.asarray(sums_md.cpu(), np.float64),
            np.asarray(torch.bincount(fine_n, minlength=m).cpu(), np.int64),
            np.asarray(torch.bincount(fine_n, exact_n, m).cpu(), np.float64),
        )
