"""Uniform samples over the rows of all shards, without a list of all rows."""

import zlib
from collections.abc import Mapping

import numpy as np

_HYPERGEOMETRIC_LIMIT = 1_000_000_000  # of numpy's generator


def allocate_sample(rows_by_unit: Mapping[str, int], sample_rows: int, seed: int) -> dict[str, int]:
    """How many rows to sample from each unit, so that every set of rows is equally likely.

    The counts of a draw over all units without replacement follow the multivariate hypergeometric distribution.
    `sample_positions` then chooses the rows of each unit.

    Args:
        rows_by_unit: Rows of each unit.
        sample_rows: Rows to sample; all rows if there are not more.
        seed: Of the draw.
    """
    units = sorted(rows_by_unit)
    rows = np.array([rows_by_unit[unit] for unit in units], dtype=np.int64)
    if rows.sum() <= sample_rows:
        return {unit: rows_by_unit[unit] for unit in units}
    generator = np.random.default_rng(seed)
    if rows.sum() >= _HYPERGEOMETRIC_LIMIT:
        rows = _thin(rows, sample_rows, generator)
    # `marginals` draws unit by unit: its cost grows with the units, not with the rows.
    counts = generator.multivariate_hypergeometric(rows, sample_rows, method="marginals")
    return {unit: int(count) for unit, count in zip(units, counts, strict=True)}


def _thin(rows: np.ndarray, sample_rows: int, generator: np.random.Generator) -> np.ndarray:
    """Keep each row independently, with a probability by which slightly more than `sample_rows` are kept.

    Given their number, every set of kept rows is equally likely, so a uniform draw from it is one from all rows.
    """
    share = min(1.0, (sample_rows + 6 * np.sqrt(sample_rows) + 10) / rows.sum())
    while True:
        kept: np.ndarray = generator.binomial(rows, share)
        if kept.sum() >= sample_rows:
            return kept


def sample_positions(unit: str, rows: int, count: int, seed: int) -> np.ndarray:
    """Which of a unit's rows are sampled: `count` distinct positions below `rows`, ascending, int64."""
    generator = np.random.default_rng((seed, zlib.crc32(unit.encode())))
    return np.sort(generator.choice(rows, size=min(count, rows), replace=False))
