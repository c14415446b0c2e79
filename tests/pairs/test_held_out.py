"""Held-out pairs depend on where they lie alone, are spread evenly, and are one caption a row."""

from collections.abc import Iterator

import numpy as np
import pytest

from mode_ray.errors import DataError
from mode_ray.pairs.held_out import choose_held_out, is_kept, pair_hash

Rows = Iterator[tuple[str, np.ndarray, np.ndarray]]


def units(rows: int = 500, captions: int = 1, count: int = 4) -> Rows:
    for number in range(count):
        row_p = np.repeat(np.arange(rows), captions)
        yield f"unit-{number}", row_p, np.tile(np.arange(captions), rows)


def test_the_hash_is_of_unit_and_row_alone() -> None:
    rows = np.arange(1000)
    assert pair_hash("a", rows)[7] == pair_hash("a", np.array([7]))[0]
    assert len(np.unique(np.concatenate([pair_hash("a", rows), pair_hash("b", rows)]))) == 2000
    assert int(pair_hash("a", rows).max()) < 2**63


def test_hashes_are_spread_evenly() -> None:
    counts = np.histogram(pair_hash("a", np.arange(100_000)).astype(float), bins=20, range=(0, 2.0**63))[0]
    assert counts.min() > 4700
    assert counts.max() < 5300


def test_exactly_as_many_as_asked_for_and_none_of_them_is_trained_on() -> None:
    held_out = choose_held_out(units(), 100)
    assert len(set(held_out.places)) == 100
    left = {(unit, int(row)) for unit, row_p, _ in units() for row in row_p[~is_kept(unit, row_p, held_out.below)]}
    assert left == {(unit, row) for unit, row, _ in held_out.places}


def test_of_a_row_with_several_captions_one_is_measured_and_all_are_held_out() -> None:
    held_out = choose_held_out(units(captions=3), 100)
    assert {caption for _, _, caption in held_out.places} == {0}
    assert len({(unit, row) for unit, row, _ in held_out.places}) == 100
    trained = sum(int(is_kept(unit, row_p, held_out.below).sum()) for unit, row_p, _ in units(captions=3))
    assert trained == 3 * (2000 - 100)


def test_the_order_of_units_and_rows_does_not_matter() -> None:
    forward = list(units())
    backward = [(unit, row_p[::-1], index_p[::-1]) for unit, row_p, index_p in reversed(forward)]
    assert choose_held_out(backward, 50) == choose_held_out(forward, 50)


def test_a_threshold_of_zero_keeps_all() -> None:
    assert is_kept("a", np.arange(10_000), 0).all()


def test_more_than_half_of_a_set_is_not_held_out() -> None:
    with pytest.raises(DataError, match=r"has 2,000 pairs: too few to hold out 1,001; lower sweep\.held_out_pairs"):
        choose_held_out(units(), 1001)
    with pytest.raises(DataError, match="has 0 pairs"):
        choose_held_out([("a", np.empty(0, np.int64), np.empty(0, np.int64))], 1)
