"""How many CPU threads torch takes, for the length of a block."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Let torch use `threads` threads within the block; the old setting comes back after it."""
    import torch  # the driver imports users of this for their types, and has no use for torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
