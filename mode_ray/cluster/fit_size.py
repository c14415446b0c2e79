"""What bounds the work and the memory of a fit. Without torch, so that the planner can import it too."""

CANDIDATES_PER_ROW = 16
"""Centers that a balanced fit keeps for each row while prices move."""
SEEDING_ROWS_PER_CENTER = 16
MIN_SEEDING_ROWS = 16_384
_EMBEDDING_VALUE_BYTES = 2  # float16
_PROJECTED_VALUE_BYTES = 4  # float32
# `cluster.projection` keeps 0.46 to 0.66 of the axes for embeddings of 256 and 384 dimensions.
_PROJECTED_SHARE = 0.65
_NEAREST_BYTES = 8  # the nearest center (int32) and its squared distance (float32)
_CANDIDATE_BYTES = 8  # the same for each candidate


def seeding_rows_at_most(centers: int) -> int:
    """Rows that the first centers are chosen from: 16 a center, 16,384 at least; fewer where the sample is smaller."""
    return max(SEEDING_ROWS_PER_CENTER * centers, MIN_SEEDING_ROWS)


def sample_row_bytes(dimension: int, *, balanced: bool) -> float:
    """Memory of one row of the sample during the fit.

    2 d bytes for the embedding, 4 (0.65 d + 1) for its projection with the length of the remainder, 8 for the nearest
    center, and 128 for the candidates of a balanced fit: 1.3 kB for d = 256.

    Args:
        dimension: d.
        balanced: Whether the fit is balanced (`cluster.fine.balanced`).
    """
    row = _EMBEDDING_VALUE_BYTES * dimension + _PROJECTED_VALUE_BYTES * (_PROJECTED_SHARE * dimension + 1)
    return row + _NEAREST_BYTES + (CANDIDATES_PER_ROW * _CANDIDATE_BYTES if balanced else 0)
