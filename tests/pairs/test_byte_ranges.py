"""Close ranges are read in one request, and what is read in vain stays within bounds."""

import numpy as np
import pytest

from mode_ray.pairs.byte_ranges import MergedRanges, merge_ranges


def merged(ranges: list[tuple[int, int, int]], slack: float) -> MergedRanges:
    """From (file, start, size)."""
    files, starts, sizes = np.array(ranges, np.int64).reshape(-1, 3).T
    return merge_ranges(files, starts, sizes, slack)


def requests(found: MergedRanges) -> list[tuple[int, int, int]]:
    return list(zip(found.files_q.tolist(), found.starts_q.tolist(), found.ends_q.tolist(), strict=True))


def test_neighbours_become_one_request_and_strangers_do_not() -> None:
    found = merged([(0, 0, 100), (0, 110, 100), (0, 5000, 100)], slack=0.2)
    assert requests(found) == [(0, 0, 210), (0, 5000, 5100)]
    assert found.request_r.tolist() == [0, 0, 1]
    assert (found.range_bytes, found.request_bytes) == (300, 310)


def test_the_smallest_gaps_are_bridged_first_over_all_files() -> None:
    ranges = [(0, 0, 100), (0, 150, 100), (1, 0, 100), (1, 120, 100), (2, 0, 100), (2, 130, 100)]
    assert requests(merged(ranges, slack=50 / 600)) == [
        (0, 0, 100),
        (0, 150, 250),
        (1, 0, 220),
        (2, 0, 230),
    ]


def test_without_slack_only_what_touches_is_merged() -> None:
    assert requests(merged([(0, 0, 10), (0, 10, 10), (0, 21, 10)], slack=0.0)) == [(0, 0, 20), (0, 21, 31)]


def test_equal_and_overlapping_ranges_are_read_once() -> None:
    found = merged([(0, 100, 50), (0, 0, 200), (0, 100, 50), (0, 180, 40), (3, 7, 0)], slack=0.0)
    assert requests(found) == [(0, 0, 220), (3, 7, 7)]
    assert found.request_r.tolist() == [0, 0, 0, 0, 1]
    assert found.range_bytes == found.request_bytes == 220


def test_files_are_never_merged() -> None:
    found = merged([(5, 0, 10), (2, 10, 10), (2, 0, 10)], slack=10.0)
    assert requests(found) == [(2, 0, 20), (5, 0, 10)]
    assert found.request_r.tolist() == [1, 0, 0]


def test_no_range_is_no_request() -> None:
    found = merged([], slack=0.2)
    assert requests(found) == []
    assert (found.range_bytes, found.request_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_every_range_is_inside_its_request_and_the_bound_holds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    files, starts = generator.integers(0, 4, 300), generator.integers(0, 200_000, 300)
    sizes = generator.integers(0, 900, 300)
    found = merge_ranges(files, starts, sizes, 0.2)
    request = found.request_r
    assert np.array_equal(found.files_q[request], files)
    assert np.all(found.starts_q[request] <= starts)
    assert np.all(found.ends_q[request] >= starts + sizes)
    covered = {
        (file, byte)
        for file, start, size in zip(files, starts, sizes, strict=True)
        for byte in range(start, start + size)
    }
    assert found.range_bytes == len(covered)
    assert found.request_bytes <= 1.2 * len(covered)
    assert len(found.files_q) < len(np.unique(files * 10**9 + starts))
