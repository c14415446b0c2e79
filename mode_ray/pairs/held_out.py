"""Pairs held out of training. A hash of their position selects them, so they are the same for every trial."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mode_ray.errors import DataError
from mode_ray.util.counter_random import UInt64Array, draw_keys, mix


def pair_hash(unit: str, row_p: npt.NDArray[np.integer]) -> UInt64Array:
    """A pseudorandom 63-bit hash of each row of a work unit; all captions of a row share its hash."""
    mixed: UInt64Array = mix(row_p.astype(np.uint64) + draw_keys(unit, 1)) >> np.uint64(1)
    return mixed


def is_kept(unit: str, row_p: npt.NDArray[np.integer], held_out_below: int) -> npt.NDArray[np.bool_]:
    """Whether rows are trained on: those with a hash of at least the threshold."""
    return pair_hash(unit, row_p) >= np.uint64(held_out_below)


@dataclass(frozen=True)
class HeldOut:
    """The pairs that are held out of a training set.

    Attributes:
        below: No model is trained on rows whose hash is below this.
        places: (work unit, row, caption index) of each pair; one caption per row.
    """

    below: int
    places: tuple[tuple[str, int, int], ...]


def choose_held_out(
    rows: Iterable[tuple[str, npt.NDArray[np.integer], npt.NDArray[np.integer]]], pairs: int
) -> HeldOut:
    """Choose the rows of a training set with the smallest hashes.

    Args:
        rows: For each work unit its name, and the row and caption index of each caption of the set.
        pairs: Number of pairs to hold out.

    Raises:
        DataError: More than half of the set would be held out.
    """
    total = 0
    found: list[tuple[int, str, int, int]] = []
    for unit, row_p, caption_index_p in rows:
        hash_p = pair_hash(unit, row_p)
        order = np.lexsort((caption_index_p, hash_p))
        # The first caption of every row.
        first = order[np.concatenate([[True], np.diff(row_p[order]) != 0])] if len(order) else order
        total += len(first)
        columns = (hash_p[first[:pairs]], row_p[first[:pairs]], caption_index_p[first[:pairs]])
        found += [(int(h), unit, int(row), int(index)) for h, row, index in zip(*columns, strict=True)]
        found = sorted(found)[:pairs]
    if 2 * pairs > total:
        raise DataError(
            f"the training set of the sweep has {total:,} pairs: too few to hold out {pairs:,}; "
            "lower sweep.held_out_pairs"
        )
    return HeldOut(found[-1][0] + 1, tuple((unit, row, index) for _, unit, row, index in found))
