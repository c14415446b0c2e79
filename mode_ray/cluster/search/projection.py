"""A projection to few dimensions that never increases a distance, for cheap lower bounds of all distances."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

Float32Array = npt.NDArray[np.float32]

# Shares of the variance that heads and whole projections explain, measured on word-table embeddings of 256 and 384
# dimensions. With smaller shares, computing more distances in full costs more than the smaller matrix product saves.
# Searches for several candidates need tighter bounds. Centers are means and need fewer axes than rows; without hints,
# a second test of the bounds is not worth its cost.
ROWS_SHARES = (0.72, 0.85)
CANDIDATES_SHARES = (0.88, 0.97)
CENTERS_SHARES = (0.9, 0.9)
_STEP = 8
_ROWS_FOR_BASIS = 25_000


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal axes, with the length of the remainder as an additional coordinate.

    For orthonormal axes |x - y|^2 = |x' - y'|^2 + |x'' - y''|^2, where x' is the part of x on the axes and x'' the
    remainder. The last term is at least (|x''| - |y''|)^2 (triangle inequality), so the squared distance of the
    projections is a lower bound.

    Attributes:
        axes_dr: float32 [d, r], orthonormal columns, the most important first.
        mean_d: float32 [d], origin of the axes.
        head: h, the number of axes for the first test of bounds; see `split`.
    """

    axes_dr: torch.Tensor
    mean_d: torch.Tensor
    head: int

    @classmethod
    def fit(cls, rows_nd: npt.NDArray[np.floating], shares: tuple[float, float]) -> Self:
        """Fit the axes that explain shares of the rows' variance, in steps of 8 axes.

        Args:
            rows_nd: Floats [n, d]; evenly spaced rows are used if there are many.
            shares: Share of the variance that the head explains, and share that all axes explain.
        """
        step = max(1, len(rows_nd) // _ROWS_FOR_BASIS)
        rows = torch.from_numpy(np.ascontiguousarray(rows_nd[::step], np.float32))
        mean_d = rows.mean(dim=0)
        centered = rows - mean_d
        variance_d, axes_dd = torch.linalg.eigh((centered.T @ centered).double())
        explained_d = variance_d.flip(0).clamp(min=0.0).cumsum(0)

        def axes(explained: float) -> int:
            enough = int(torch.searchsorted(explained_d, explained * explained_d[-1])) + 1
            return min(rows.shape[1], -(-enough // _STEP) * _STEP)

        head_share, share = shares
        return cls(axes_dd.flip(1)[:, : axes(share)].float().contiguous(), mean_d, axes(head_share))

    @property
    def dimension(self) -> int:
        """Length of a projection: r + 1."""
        return int(self.axes_dr.shape[1]) + 1

    def project(self, vectors_bd: torch.Tensor) -> torch.Tensor:
        """Projections float32 [b, r + 1] of vectors float32 [b, d]."""
        # One product with the axes and the mean; subtracting the origin afterwards saves a copy of the vectors.
        product_bp = vectors_bd @ torch.column_stack([self.axes_dr, self.mean_d])
        projected_bp = product_bp - torch.cat([self.mean_d @ self.axes_dr, torch.zeros(1)])
        squared_b = torch.linalg.vecdot(vectors_bd, vectors_bd) + (self.mean_d @ self.mean_d - 2.0 * product_bp[:, -1])
        on_axes_br = projected_bp[:, :-1]
        left_over_b = squared_b - torch.linalg.vecdot(on_axes_br, on_axes_br)
        projected_bp[:, -1] = left_over_b.clamp_(min=0.0).sqrt_()
        return projected_bp

    def parts(self, vectors_bd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projections of vectors float32 [b, d], split as by `split`."""
        return self.split(self.project(vectors_bd))

    def split(self, projected_bp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split projections in two parts, so that bounds can be computed in two steps.

        The squared distance of the heads is a lower bound of that of the whole projections, again by the triangle
        inequality. Subtracting the term of the heads' last coordinate and adding the tails' squared distance gives
        that of the whole projections.

        Returns:
            heads: float32 [b, h + 1], the first h axes and the length of the tail.
            tails: float32 [b, r + 1 - h], the other coordinates.
        """
        tails_bt = projected_bp[:, self.head :]
        lengths_b1 = torch.linalg.vector_norm(tails_bt, dim=1, keepdim=True)
        return torch.cat([projected_bp[:, : self.head], lengths_b1], dim=1), tails_bt
