"""Random numbers as a function of a key and a counter: any number can be computed alone, on any worker."""

import hashlib

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

MAX_KEYS = 8  # of one hash


def draw_keys(name: str, count: int) -> UInt64Array:
    """Keys, uint64 [count], that a name determines; at most `MAX_KEYS`."""
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8 * count).digest(), "<u8").astype(np.uint64)


def mix(values: UInt64Array) -> UInt64Array:
    """A bijection of 64 bits in which every output bit depends on every input bit: the finaliser of SplitMix64.

    Steele, Lea and Flood, *Fast splittable pseudorandom number generators* (2014), with Stafford's constants.
    """
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> np.uint64(27))
    values = values * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform_numbers(name: str, counters_b: npt.NDArray[np.int64], draws: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1).

    Args:
        name: Seed; other names give other numbers.
        counters_b: Which rows of an endless table, int64 [b], not negative.
        draws: Numbers in each row, c.

    Returns:
        float64 [b, c]. A row depends only on the name and its counter; a larger c adds numbers at its end.
    """
    row_key, column_key = draw_keys(name, 2)
    rows_b = mix(counters_b.astype(np.uint64) ^ row_key)
    columns_c = mix(np.arange(draws, dtype=np.uint64) ^ column_key)
    mixed: UInt64Array = mix(rows_b[:, None] ^ columns_c)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
