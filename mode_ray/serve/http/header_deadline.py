"""Closes connections whose request headers do not arrive in time: uvicorn itself waits for them forever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_UVICORN: Any = AutoHTTPProtocol  # of httptools if it is installed, else of h11


def protocol_with_header_deadline(seconds: float) -> type[asyncio.Protocol]:
    """The protocol of uvicorn with a deadline for the headers of every request.

    Args:
        seconds: From the start of the connection, or from the first byte of a further request, to the last header.
    """

    class HeaderDeadline(_UVICORN):  # type: ignore[misc]
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Run the timer while no request is complete up to its body."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self.timer is None:
                self.timer = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return HeaderDeadline
