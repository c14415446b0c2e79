"""Every epoch is its own permutation, computed place by place, for any size, seed and blocks."""

import math
from collections import Counter

import numpy as np
import pytest

from mode_ray.pairs.order import GroupedOrder, SampleOrder, permute
from mode_ray.util.counter_random import draw_keys, uniform_numbers

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 48, 97, 100, 128, 1000, 1009, 4096, 10_007, 65_536, 99_991]


def epoch(order: SampleOrder, pairs: int, number: int = 0) -> list[int]:
    """All pairs of an epoch, in order."""
    return [int(pair) for pair in order.pairs_at(np.arange(number * pairs, (number + 1) * pairs))]


def chi_square(counts: list[int]) -> float:
    """Standard deviations by which equally likely counts miss their mean (of a chi-square)."""
    expected = sum(counts) / len(counts)
    value = sum((count - expected) ** 2 for count in counts) / expected
    return (value - (len(counts) - 1)) / math.sqrt(2 * (len(counts) - 1))


class TestPermutation:
    @pytest.mark.parametrize("size", SIZES)
    def test_it_is_a_bijection(self, size: int) -> None:
        for seed in range(3):
            images = permute(np.arange(size), size, draw_keys(f"test {seed}", 6))
            assert images.dtype == np.int64
            assert np.array_equal(np.sort(images), np.arange(size))

    def test_sizes_beyond_any_memory(self) -> None:
        size = 10**15 + 37
        places = np.random.default_rng(0).integers(0, size, 10_000)
        images = permute(places, size, draw_keys("test", 6))
        assert len(np.unique(images)) == len(np.unique(places))
        assert images.min() >= 0
        assert images.max() < size
        assert abs(images.mean() / size - 0.5) < 0.02
        assert abs(np.corrcoef(places, images)[0, 1]) < 0.04

    @pytest.mark.parametrize("size", [3, 4])
    def test_every_permutation_of_a_few_is_about_equally_likely(self, size: int) -> None:
        tries = 200 * math.factorial(size)
        found = Counter(tuple(permute(np.arange(size), size, draw_keys(f"{t}", 6)).tolist()) for t in range(tries))
        assert len(found) == math.factorial(size)
        assert max(found.values()) < 2 * min(found.values())

    @pytest.mark.parametrize("size", [11, 60])
    def test_every_place_goes_everywhere_and_neighbours_go_apart(self, size: int) -> None:
        tries = 4000
        images = np.array([permute(np.arange(size), size, draw_keys(f"{t}", 6)) for t in range(tries)])
        for place in (0, 1, size // 2, size - 1):
            assert chi_square(np.bincount(images[:, place], minlength=size).tolist()) < 5
        for distance in (1, size // 2):
            apart = (images[:, distance:] - images[:, :-distance]) % size
            counts = np.bincount(apart.reshape(-1), minlength=size)
            assert counts[0] == 0
            # The differences within one permutation depend on one another a little, hence the wider bound.
            assert chi_square(counts[1:].tolist()) < 8


class TestEpochs:
    @pytest.mark.parametrize("block", [1, 2, 5, 32, 1000])
    @pytest.mark.parametrize("pairs", [1, 2, 31, 32, 33, 64, 97, 640])
    def test_every_pair_once_for_any_blocks(self, pairs: int, block: int) -> None:
        order = SampleOrder(pairs, seed=3, block_pairs=block)
        for number in range(4):
            assert sorted(epoch(order, pairs, number)) == list(range(pairs))

    def test_epochs_and_seeds_differ(self) -> None:
        orders = [epoch(SampleOrder(50, seed), 50, number) for seed in (0, 1) for number in (0, 1)]
        assert len({tuple(order) for order in orders}) == 4
        assert list(range(50)) not in orders
        assert epoch(SampleOrder(50, 0), 50) == orders[0]

    def test_the_pair_at_a_position_does_not_depend_on_what_is_asked_with_it(self) -> None:
        order = SampleOrder(20, seed=1, block_pairs=3)
        forward = order.pairs_at(np.arange(60))
        backward = SampleOrder(20, seed=1, block_pairs=3).pairs_at(np.arange(60)[::-1])
        assert np.array_equal(backward[::-1], forward)
        assert [int(order.pairs_at([position])[0]) for position in range(60)] == forward.tolist()

    def test_neighbours_of_a_block_follow_one_another(self) -> None:
        order = epoch(SampleOrder(100, seed=0, block_pairs=8), 100)
        starts = [place for place in range(100) if order[place] % 8 == 0]
        assert len(starts) == 13
        for start in starts:
            first = order[start]
            length = min(8, 100 - first)
            assert order[start : start + length] == list(range(first, first + length))

    def test_the_short_block_may_stand_anywhere(self) -> None:
        places = Counter(epoch(SampleOrder(10, seed, block_pairs=4), 10).index(8) for seed in range(300))
        assert set(places) == {0, 4, 8}
        assert min(places.values()) > 70

    @pytest.mark.parametrize("seed", [0, 20_261_123, 2**63, 2**80])
    def test_any_seed_that_the_config_takes_works(self, seed: int) -> None:
        assert sorted(epoch(SampleOrder(9, seed), 9)) == list(range(9))

    def test_positions_far_out_cost_no_more(self) -> None:
        order = SampleOrder(10**10, seed=0, block_pairs=32)
        pairs = order.pairs_at(np.arange(7 * 10**10 - 64, 7 * 10**10 + 64))
        assert len(np.unique(pairs)) >= 127  # two epochs: at most by chance the same pair twice
        assert pairs.max() < 10**10


class TestUniformNumbers:
    def test_a_row_depends_on_its_counter_and_the_name_alone(self) -> None:
        whole = uniform_numbers("crops 0", np.arange(100), 5)
        assert np.array_equal(uniform_numbers("crops 0", np.array([7, 3]), 3), whole[[7, 3], :3])
        assert not np.isin(uniform_numbers("crops 1", np.arange(100), 5), whole).any()

    def test_they_are_uniform_and_independent(self) -> None:
        numbers = uniform_numbers("test", np.arange(50_000), 4)
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert np.allclose(numbers.mean(axis=0), 0.5, atol=0.006)
        assert np.allclose(np.cov(numbers.T), np.eye(4) / 12, atol=0.002)
        assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.02


class TestBatchesOfOneGroup:
    SIZES = (300, 0, 100, 600)
    BATCH = 20

    def batches(self, count: int, seed: int = 0) -> np.ndarray:
        pairs = GroupedOrder(self.SIZES, seed, self.BATCH).pairs_at(np.arange(count * self.BATCH))
        return pairs.reshape(count, self.BATCH)

    def groups(self, batches: np.ndarray) -> np.ndarray:
        return np.searchsorted(np.cumsum(self.SIZES), batches, side="right")

    def test_every_batch_is_of_one_group_in_proportion_to_the_sizes(self) -> None:
        groups = self.groups(self.batches(2000))
        assert (groups == groups[:, :1]).all()
        shares = np.bincount(groups[:, 0], minlength=4) / 2000
        assert shares == pytest.approx([0.3, 0.0, 0.1, 0.6], abs=0.04)

    def test_a_group_repeats_no_pair_before_all_were_seen(self) -> None:
        batches = self.batches(200)
        groups = self.groups(batches)[:, 0]
        for group, size in enumerate(self.SIZES):
            seen = batches[groups == group].reshape(-1)
            for start in range(0, len(seen) - size, size or 1):
                assert len(set(seen[start : start + size].tolist())) == size

    def test_positions_can_be_asked_for_alone_and_in_any_order(self) -> None:
        whole = self.batches(64).reshape(-1)
        order = GroupedOrder(self.SIZES, 0, self.BATCH)
        for position in (1279, 0, 640, 7, 1278):
            assert order.pairs_at([position]).tolist() == [whole[position]]

    def test_seeds_draw_other_groups_and_pairs(self) -> None:
        assert (self.groups(self.batches(64)) != self.groups(self.batches(64, seed=1))).any()
        assert set(self.batches(1000).ravel()) == set(self.batches(1000, seed=1).ravel()) == set(range(1000))
