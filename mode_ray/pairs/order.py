"""The order of a run's samples: one sequence, determined by the size N of the training set and the seed.

Position p is in epoch p // N, at place p % N of that epoch's permutation. Places of the permutation are computed on
demand, so an order needs no memory for any N.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mode_ray.util.counter_random import UInt64Array, draw_keys, mix, uniform_numbers

_ROUNDS = 6

Int64Array = npt.NDArray[np.int64]


class PairOrder(Protocol):
    """The sequence of a run's samples."""

    def pairs_at(self, positions: npt.ArrayLike) -> Int64Array:
        """The pairs at these positions of the sequence, int64 [b]."""
        ...


class SampleOrder:
    """The sequence of a run's samples.

    Blocks of neighbouring pairs stay together: an epoch is a permutation of the blocks. The last block, which may be
    shorter, is inserted at a random place.

    Args:
        pairs: N, size of the training set.
        seed: Seed of the permutations.
        block_pairs: Pairs per block; 1 shuffles single pairs.
    """

    def __init__(self, pairs: int, seed: int, block_pairs: int = 1) -> None:
        self._pairs = pairs
        self._seed = seed
        self._block = block_pairs
        self._blocks, self._rest = divmod(pairs, block_pairs)

    def pairs_at(self, positions: npt.ArrayLike) -> Int64Array:
        """The pairs at these positions of the sequence, int64 [b]."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self._pairs)
        pairs = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            pairs[here] = self._epoch_pairs(epoch, places[here])
        return pairs

    def _epoch_pairs(self, epoch: int, places: Int64Array) -> Int64Array:
        """The pairs at these places, below N, of an epoch."""
        keys = draw_keys(f"order {self._seed} {epoch}", _ROUNDS + 1)
        first_short = int(keys[_ROUNDS] % np.uint64(self._blocks + 1)) * self._block
        # Ignore the short block: places after it move up.
        behind = places >= first_short + self._rest
        slots, within = np.divmod(places - behind * self._rest, self._block)
        # Places inside the short block may have a slot that does not exist; they are overwritten below.
        blocks = permute(np.minimum(slots, self._blocks - 1), self._blocks, keys[:_ROUNDS]) if self._blocks else slots
        pairs = blocks * self._block + within
        short = (places >= first_short) & ~behind
        pairs[short] = self._blocks * self._block + places[short] - first_short
        return pairs


class GroupedOrder:
    """A sequence in which every batch is from one group of pairs, such as a cluster.

    Batch number j is from a group that is drawn in proportion to the groups' sizes. Within a group, batches follow its
    own `SampleOrder`, so every pair is seen once before any is repeated.

    Args:
        sizes: Pairs of each group; the groups follow each other in the training set.
        seed: Seed of groups and permutations.
        batch_size: Samples of a batch.
        block_pairs: As of `SampleOrder`.
    """

    def __init__(self, sizes: Sequence[int], seed: int, batch_size: int, block_pairs: int = 1) -> None:
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._starts = self._ends - np.asarray(sizes, np.int64)
        self._orders = [
            SampleOrder(size, seed * len(sizes) + group, block_pairs) if size else None
            for group, size in enumerate(sizes)
        ]
        self._seed = seed
        self._batch_size = batch_size
        # Group of each batch so far, and how many batches of that group precede it.
        self._group_j = np.empty(0, np.int64)
        self._number_j = np.empty(0, np.int64)

    def pairs_at(self, positions: npt.ArrayLike) -> Int64Array:
        """The pairs at these positions of the sequence, int64 [b]."""
        batches, within = np.divmod(np.asarray(positions, np.int64), self._batch_size)
        if len(batches) and batches.max() >= len(self._group_j):
            self._draw(2 * (int(batches.max()) + 1))
        groups, places = self._group_j[batches], self._number_j[batches] * self._batch_size + within
        pairs = np.empty_like(places)
        for group in np.unique(groups).tolist():
            order = self._orders[group]
            here = groups == group
            if order is not None:  # empty groups are never drawn
                pairs[here] = self._starts[group] + order.pairs_at(places[here])
        return pairs

    def _draw(self, count: int) -> None:
        """Draw the groups of the first batches. Earlier batches keep theirs."""
        drawn = uniform_numbers(f"groups {self._seed}", np.arange(count), 1)[:, 0] * self._ends[-1]
        self._group_j = np.searchsorted(self._ends, drawn, side="right")
        self._number_j = np.empty(count, np.int64)
        for group in range(len(self._ends)):
            here = np.flatnonzero(self._group_j == group)
            self._number_j[here] = np.arange(len(here))


def permute(places: Int64Array, size: int, keys: UInt64Array) -> Int64Array:
    """Apply a pseudorandom permutation of 0 … size - 1 to places, int64.

    A Feistel network permutes the pairs (left, right) of the smallest rectangle with at least `size` places, by
    addition modulo its sides. Results outside the range are permuted again until they are inside (Black and Rogaway,
    *Ciphers with arbitrary finite domains*, 2002).

    Args:
        places: int64 [b], each below `size`.
        size: At least 1.
        keys: One key per round, an even number of them.
    """
    left_size = np.uint64(math.isqrt(size - 1) + 1)
    right_size = np.uint64(-(-size // int(left_size)))
    images = _rounds(places.astype(np.uint64), left_size, right_size, keys)
    while True:
        outside = np.flatnonzero(images >= np.uint64(size))
        if len(outside) == 0:
            return images.astype(np.int64)
        images[outside] = _rounds(images[outside], left_size, right_size, keys)


def _rounds(values: UInt64Array, left_size: np.uint64, right_size: np.uint64, keys: UInt64Array) -> UInt64Array:
    left, right = np.divmod(values, right_size)
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left = (left + mix(right ^ even) % left_size) % left_size
        right = (right + mix(left ^ odd) % right_size) % right_size
    return left * right_size + right
