"""Limits of the work and the memory of a fit. Imports no torch, so that the planner can use it."""

CANDIDATES_PER_ROW = 16
"""Centers that a balanced fit keeps for each row while prices change."""
SEEDING_ROWS_PER_CENTER = 16
MIN_SEEDING_ROWS = 16_384
_EMBEDDING_VALUE_BYTES = 2  # float16
_PROJECTED_VALUE_BYTES = 4  # float32
# `cluster.search.projection` keeps 0.46 to 0.66 of the axes for embeddings of 256 and 384 dimensions.
_PROJECTED_SHARE = 0.65
_NEAREST_BYTES = 8  # the nearest center (int32) and its squared distance (float32)
_CANDIDATE_BYTES = 8  # the same for each candidate


def seeding_rows_at_most(centers: int) -> int:
    """The most rows that the first centers are chosen from: 16 per center, at least 16,384."""
    return max(SEEDING_ROWS_PER_CENTER * centers, MIN_SEEDING_ROWS)


def sample_row_bytes(dimension: int, *, balanced: bool) -> float:
    """Memory of one row of the sample during the fit.

    The embedding takes 2 d bytes, its projection with the length of the remainder 4 (0.65 d + 1), the nearest center
    8, and the candidates of a balanced fit 128. The sum is 1.3 kB for d = 256.

    Args:
        dimension: d.
        balanced: Whether the fit is balanced (`cluster.fine.balanced`).
    """
    row = _EMBEDDING_VALUE_BYTES * dimension + _PROJECTED_VALUE_BYTES * (_PROJECTED_SHARE * dimension + 1)
    return row + _NEAREST_BYTES + (CANDIDATES_PER_ROW * _CANDIDATE_BYTES if balanced else 0)
