"""HTTP servers of tests, in a thread of their own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from typing import TypeVar

T = TypeVar("T", bound=HTTPServer)


@contextmanager
def serving(server: T) -> Iterator[T]:
    """Let a server answer until the end of the block, and close it then."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
