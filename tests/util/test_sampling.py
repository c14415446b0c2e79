"""Sampling over the rows of many units: exact size, every row equally likely, the same for the same seed."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.captions.clean import EMPTY, CaptionTable, clean
from mode_ray.embed.stage import take_sample
from mode_ray.util.sampling import allocate_sample, sample_positions

ROWS = {"a": 5, "b": 0, "c": 1, "d": 30, "e": 64}


def draw(rows_by_unit: Mapping[str, int], size: int, seed: int) -> set[tuple[str, int]]:
    """The sampled rows."""
    wanted = allocate_sample(rows_by_unit, size, seed)
    return {
        (unit, int(position))
        for unit, rows in rows_by_unit.items()
        for position in sample_positions(unit, rows, wanted[unit], seed)
    }


def unit_of(found: int, usable: set[int]) -> CaptionTable:
    """The captions of a unit in which some rows are empty."""
    rows = np.arange(found)
    columns = {"row": pa.array(rows), "caption_index": pa.array(np.zeros(found, np.int32))}
    raw = [b"a caption" if row in usable else b"" for row in rows]
    return clean({**columns, "key": columns["row"].cast(pa.string())}, pa.array(raw, pa.binary()), 100)


class TestSize:
    @pytest.mark.parametrize("size", [1, 7, 50, 99, 100])
    def test_it_is_exact_and_rows_are_distinct(self, size: int) -> None:
        wanted = allocate_sample(ROWS, size, seed=3)
        assert sum(wanted.values()) == size == len(draw(ROWS, size, seed=3))
        assert all(0 <= wanted[unit] <= ROWS[unit] for unit in ROWS)

    def test_all_rows_where_there_are_not_more(self) -> None:
        assert allocate_sample(ROWS, 1000, seed=0) == ROWS

    def test_no_unit_and_no_row(self) -> None:
        assert allocate_sample({}, 10, seed=0) == {}
        assert allocate_sample({"a": 0}, 10, seed=0) == {"a": 0}
        assert len(sample_positions("a", 0, 0, seed=0)) == 0

    def test_ten_billion_rows_in_many_units(self) -> None:
        rows = {f"unit {number:05d}": 1_000_000 if number % 2 else 3_000_000 for number in range(5000)}
        wanted = allocate_sample(rows, 2_000_000, seed=1)
        assert sum(rows.values()) == 10**10
        assert sum(wanted.values()) == 2_000_000
        counts = np.array([wanted[unit] for unit in sorted(rows)])
        expected = np.array([rows[unit] for unit in sorted(rows)]) * 2e-4
        # Pearson's statistic of 5,000 counts: mean 5,000, standard deviation 100.
        assert abs(((counts - expected) ** 2 / expected).sum() - 5000) < 500

    def test_positions_are_ascending_within_the_unit_and_at_most_its_rows(self) -> None:
        positions = sample_positions("x", 1000, 400, seed=0)
        assert np.all(np.diff(positions) > 0)
        assert 0 <= positions[0] < positions[-1] < 1000
        assert sample_positions("x", 3, 10, seed=0).tolist() == [0, 1, 2]


class TestUniformity:
    def test_every_row_is_equally_likely_whatever_the_size_of_its_unit(self) -> None:
        draws, size = 2000, 10
        seen = {(unit, row): 0 for unit, rows in ROWS.items() for row in range(rows)}
        for seed in range(draws):
            for place in draw(ROWS, size, seed):
                seen[place] += 1
        counts, share = np.array(list(seen.values())), size / len(seen)
        deviations = (counts - draws * share) / np.sqrt(draws * share * (1 - share))
        assert np.abs(deviations).max() < 4.5
        # The sum of squares of 100 standard normals: standard deviation 14.
        assert abs((deviations**2).sum() - 100) < 60

    def test_rows_of_one_unit_come_together_as_often_as_rows_of_two(self) -> None:
        draws = 2000
        rows = {"a": 2, "b": 2}
        together = sum({("a", 0), ("a", 1)} == draw(rows, 2, seed) for seed in range(draws))
        assert together / draws == pytest.approx(1 / 6, abs=0.04)


class TestRefusedCaptions:
    def test_every_usable_caption_is_equally_likely_however_many_of_its_unit_are_refused(self) -> None:
        # Nine of ten captions of `bad` are refused. Were places drawn among the usable ones, they would always come.
        usable = {"bad": range(0, 100, 10), "good": range(100), "half": range(0, 60, 2)}
        found = {"bad": 100, "good": 100, "half": 60}
        units = {unit: unit_of(found[unit], set(usable[unit])) for unit in found}
        draws, size = 1500, 26
        seen = {(unit, row): 0 for unit, rows in usable.items() for row in rows}
        taken = []
        for seed in range(draws):
            wanted = allocate_sample(found, size, seed)
            parts = {unit: take_sample(units[unit], unit, wanted[unit], seed) for unit in units}
            for unit, part in parts.items():
                for row in part.table["row"].to_pylist():
                    seen[unit, row] += 1
            taken.append(sum(part.table.num_rows for part in parts.values()))
            assert parts["bad"].refused == {EMPTY: 90}, "refused captions are counted whether drawn or not"
        counts, share = np.array(list(seen.values())), size / sum(found.values())
        deviations = (counts - draws * share) / np.sqrt(draws * share * (1 - share))
        assert np.abs(deviations).max() < 4.5
        # The sum of squares of 140 standard normals: standard deviation 17.
        assert abs((deviations**2).sum() - len(seen)) < 75
        assert np.mean(taken) == pytest.approx(size * len(seen) / sum(found.values()), rel=0.05)

    def test_captions_that_nobody_counted_cannot_be_drawn_from(self) -> None:
        whole = unit_of(5, {1})
        with pytest.raises(ValueError, match="the positions of these captions are unknown"):
            replace(whole, ordinals=None).take(np.array([1]))


class TestDeterminism:
    def test_the_same_seed_gives_the_same_rows_in_whatever_order_units_come(self) -> None:
        backwards = dict(reversed(ROWS.items()))
        assert draw(ROWS, 20, seed=5) == draw(backwards, 20, seed=5)

    def test_another_seed_gives_others(self) -> None:
        assert draw(ROWS, 20, seed=5) != draw(ROWS, 20, seed=6)

    def test_units_of_one_size_do_not_give_the_same_positions(self) -> None:
        assert sample_positions("a", 1000, 50, seed=0).tolist() != sample_positions("b", 1000, 50, seed=0).tolist()
