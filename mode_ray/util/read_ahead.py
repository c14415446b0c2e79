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
    """The results of `read` in the order of its items; never more than `ahead` of them wait to be taken.

    Args:
        read: What to do with an item; with one thread, never called twice at a time.
        items: Iterated over as results are taken.
        ahead: Results that are computed, or waiting, beyond the one that was taken last.
        threads: That compute them.

    Raises:
        Exception: What `read` raised, when its result is the next.
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
