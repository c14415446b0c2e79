"""Memory that a process has freed and keeps for itself."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Return freed memory to the system. Linux's allocator otherwise keeps what loading a model has used."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
