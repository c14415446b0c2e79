"""What is read ahead comes in order, is bounded, and ends with whoever takes it."""

import threading
import time
from collections.abc import Generator, Iterator

import pytest

from mode_ray.util.read_ahead import read_ahead


def test_results_come_in_order_whatever_takes_how_long() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(read_ahead(slow_first, range(20), ahead=6, threads=4)) == [item * item for item in range(20)]
    assert list(read_ahead(slow_first, [], ahead=2)) == []


def test_it_works_while_the_taker_does_but_not_further_ahead_than_asked() -> None:
    taken, read = 0, []

    def note(item: int) -> int:
        read.append(item)
        assert item <= taken + 3
        return item

    for item in read_ahead(note, range(12), ahead=3):
        deadline = time.monotonic() + 5
        while len(read) < min(12, item + 4) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(read) == min(12, item + 4)
        taken += 1


def test_items_are_asked_for_as_results_are_taken() -> None:
    asked = []

    def items() -> Iterator[int]:
        for item in range(1000):
            asked.append(item)
            yield item

    results = read_ahead(lambda item: item, items(), ahead=2)
    next(results)
    assert len(asked) == 3


def test_an_error_comes_in_its_place() -> None:
    results = read_ahead(lambda item: 6 // item, [3, 2, 0, 1], ahead=2)
    assert next(results) == 2
    assert next(results) == 3
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_taker_that_stops_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    results = read_ahead(lambda item: item, range(100), ahead=4, threads=3)
    assert isinstance(results, Generator)
    next(results)
    results.close()
    # Threads of other tests may end meanwhile.
    assert set(threading.enumerate()) <= before
