"""Exact nearest-center search with torch that computes every distance: the fastest way on GPUs.

A product of vectors and centers rounded to bfloat16, added in float32, gives every score up to a known error. The
centers with the lowest scores are ranked again by their distances in float32, computed like those of
`mode_ray.cluster.search.kernels`. If a center outside of them could be better, more centers of that row are ranked.
So the result is that of `NearestCenters`, except for centers whose distances differ by less than float32 resolves.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.cluster.search.nearest import Float32Array, Int32Array, checked_centers

_SCORES_AT_ONCE = 1 << 28
_VALUES_AT_ONCE = 1 << 27
_MOST_ROWS = 65_536
_RANKED_FIRST = 16
_FACTOR = 16
# Rounding to bfloat16 changes a vector by at most 2^-9 of its length. A score has twice the product of two of them.
_ERROR_SHARE = 4.0 * 2.0**-9 * (1.0 + 2.0**-9)
# Far above the error of adding in float32, far below the gaps between distances.
_SLACK = 1e-5


class _Ranked(NamedTuple):
    """The centers of each row with the lowest scores, ranked exactly.

    Attributes:
        fine_bk: int64 [b, k], by total, then by id.
        squared_distance_bk: float32 [b, k].
        total_bk: float32 [b, k], squared distance plus price.
        others_b: float32 [b], a lower bound of the totals of all other centers.
    """

    fine_bk: torch.Tensor
    squared_distance_bk: torch.Tensor
    total_bk: torch.Tensor
    others_b: torch.Tensor


class DenseSearch:
    """Search for the center with the smallest squared L2 distance plus price; ties go to the lowest id.

    Args:
        centers_md: float32 [m, d].
        prices_m: [m], in units of squared distance; None for the plain nearest center.
        device: Where to compute.

    Raises:
        ValueError: A center or price is not finite, or shapes do not fit.
    """

    def __init__(
        self, centers_md: Float32Array, prices_m: npt.NDArray[np.floating] | None, device: torch.device
    ) -> None:
        centers, prices = checked_centers(centers_md, prices_m)
        self._device = device
        self._centers_md = torch.from_numpy(centers).to(device)
        self._prices_m = torch.from_numpy(prices).to(device)
        # Distances do not depend on the origin, but errors do: they are shares of the lengths.
        self._mean_d = self._centers_md.mean(dim=0)
        centered_md = self._centers_md - self._mean_d
        self._rounded_dm = centered_md.bfloat16().T.contiguous()
        squared_m = centered_md.square().sum(dim=1)
        self._bias_m = squared_m + self._prices_m
        self._longest = float(squared_m.max().sqrt())
        self._scale = float(squared_m.max()) + float(self._prices_m.abs().max())
        self._rows_at_once = max(1, min(_MOST_ROWS, _SCORES_AT_ONCE // len(centers)))

    def search(self, vectors_bd: npt.NDArray[np.floating]) -> tuple[Int32Array, Float32Array]:
        """As `NearestCenters.search`, without hints.

        Raises:
            ValueError: A vector is NaN or infinite, or of another dimension than the centers.
        """
        dimension = self._centers_md.shape[1]
        if vectors_bd.ndim != 2 or vectors_bd.shape[1] != dimension:
            raise ValueError(f"vectors of shape {vectors_bd.shape} do not fit centers of dimension {dimension}")
        fine_b, squared_distance_b = np.empty(len(vectors_bd), np.int32), np.empty(len(vectors_bd), np.float32)
        for start in range(0, len(vectors_bd), self._rows_at_once):
            rows = slice(start, start + self._rows_at_once)
            batch = torch.from_numpy(np.array(vectors_bd[rows]))  # a copy: arrow's memory is read-only
            fine, squared_distance = self.search_tensor(batch.to(self._device), first=start)
            fine_b[rows], squared_distance_b[rows] = fine.cpu().numpy(), squared_distance.cpu().numpy()
        return fine_b, squared_distance_b

    def search_tensor(self, vectors_bd: torch.Tensor, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The best center int32 [b] and its squared distance float32 [b] of vectors on the device.

        `first` is the number of the first row, for messages.

        Raises:
            ValueError: A vector is NaN or infinite.
        """
        vectors_bd = vectors_bd.float()
        finite_b = torch.isfinite(vectors_bd).all(dim=1)
        if not finite_b.all():
            bad = first + int((~finite_b).to(torch.uint8).argmax())
            raise ValueError(f"{int((~finite_b).sum())} vectors are NaN or infinite, the first at row {bad}")
        fine_bk, squared_distance_bk, _ = self.candidates_tensor(vectors_bd, reach=0.0, width=1)
        return fine_bk[:, 0], squared_distance_bk[:, 0]

    def candidates_tensor(
        self, vectors_bd: torch.Tensor, reach: float, width: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `NearestCenters.candidates`, for vectors on the device; all candidates are sorted.

        Returns:
            fine_bk int32 [b, k] and squared_distance_bk float32 [b, k], filled up to count_b int32 [b].
        """
        count = len(vectors_bd)
        fine_bk = torch.zeros((count, width), dtype=torch.int32, device=self._device)
        squared_distance_bk = torch.full((count, width), torch.inf, device=self._device)
        count_b = torch.zeros(count, dtype=torch.int32, device=self._device)
        for start in range(0, count, self._rows_at_once):
            left = torch.arange(start, min(start + self._rows_at_once, count), device=self._device)
            ranked_at_least = _RANKED_FIRST if width == 1 else 2 * width
            while len(left):
                ranked = self._rank(vectors_bd[left].float(), min(ranked_at_least, len(self._bias_m)))
                kept = min(width, ranked.total_bk.shape[1])
                cut_b = torch.minimum(ranked.total_bk[:, 0] + reach, ranked.total_bk[:, kept - 1])
                certain_b = ranked.others_b > cut_b
                done = left[certain_b]
                fine_bk[done, :kept] = ranked.fine_bk[certain_b, :kept].int()
                squared_distance_bk[done, :kept] = ranked.squared_distance_bk[certain_b, :kept]
                within_bk = ranked.total_bk[certain_b, :kept] <= ranked.total_bk[certain_b, :1] + reach
                count_b[done] = within_bk.sum(dim=1).int()
                left, ranked_at_least = left[~certain_b], ranked_at_least * _FACTOR
        return fine_bk, squared_distance_bk, count_b

    def _rank(self, vectors_bd: torch.Tensor, ranked: int) -> _Ranked:
        """Rank the centers with the lowest scores; `others_b` is infinite if these are all centers."""
        at_once = max(1, min(_SCORES_AT_ONCE // len(self._bias_m), _VALUES_AT_ONCE // (ranked * vectors_bd.shape[1])))
        parts = [self._rank_some(part, ranked) for part in torch.split(vectors_bd, at_once)]
        return _Ranked(*map(torch.cat, zip(*parts, strict=True)))

    def _rank_some(self, vectors_bd: torch.Tensor, ranked: int) -> _Ranked:
        centered_bd = vectors_bd - self._mean_d
        squared_b = centered_bd.square().sum(dim=1)
        if ranked == len(self._bias_m):
            fine_bk = torch.arange(ranked, device=self._device).expand(len(vectors_bd), ranked)
            others_b = torch.full_like(squared_b, torch.inf)
        else:
            score_bm = torch.add(self._bias_m, _product(centered_bd.bfloat16(), self._rounded_dm), alpha=-2.0)
            score_bk, fine_bk = score_bm.topk(ranked, dim=1, largest=False)
            error_b = _ERROR_SHARE * self._longest * squared_b.sqrt() + _SLACK * (squared_b + self._scale)
            others_b = score_bk.amax(dim=1) + squared_b - error_b
            fine_bk = fine_bk.sort(dim=1).values
        squared_distance_bk = (vectors_bd[:, None] - self._centers_md[fine_bk]).square_().sum(dim=2)
        total_bk, order_bk = (squared_distance_bk + self._prices_m[fine_bk]).sort(dim=1, stable=True)
        return _Ranked(fine_bk.gather(1, order_bk), squared_distance_bk.gather(1, order_bk), total_bk, others_b)


def _product(left_bd: torch.Tensor, right_dm: torch.Tensor) -> torch.Tensor:
    """The product of bfloat16 matrices, float32: torch's CPU kernels would round the result to bfloat16."""
    if left_bd.device.type == "cuda":
        return torch.mm(left_bd, right_dm, out_dtype=torch.float32)
    return left_bd.float() @ right_dm.float()
