"""Results in order, some of them computed ahead in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_ahead(
    read: Callable[[_Item], _Result], items: Iterable[_Item], *, ahead: int, threads: int = 1
) -> Iterator[_Result]:
    """Yield the results of `read` in the order of the items, and compute the next ones meanwhile.

    Args:
        read: Called with each item; with one thread, with one at a time.
        items: Iterated over as results are taken.
        ahead: How many results are computed ahead of the one taken last, at most.
        threads: Number of threads.

    Raises:
        Exception: What `read` raised, at its place in the order.
    """
    with ThreadPoolExecutor(threads, "read-ahead") as executor:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(executor.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
