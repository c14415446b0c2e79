"""The number of CPU threads that torch uses, for the length of a block."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Let torch use `threads` threads within the block, and restore the old setting after it."""
    import torch  # not at the top: the driver imports this module without needing torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
