"""The order of a run's samples: one sequence, determined by the size N of the training set and the seed.

Position p is in epoch p // N, at place p % N of that epoch's permutation. Places of the permutation are computed on
demand, so an order needs no memory for any N.
"""

import math

import numpy as np
import numpy.typing as npt

from mode_ray.util.counter_random import UInt64Array, draw_keys, mix

_ROUNDS = 6

Int64Array = npt.NDArray[np.int64]


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
