"""The body of a request: bounded, decompressed, and watched for a client that leaves."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from mode_ray.serve.service.errors import ServiceError

_GZIP = 16 + zlib.MAX_WBITS  # zlib's number for gzip's header and checksum


class BoundedBody:
    """Passes on a body up to a maximal size, and decompresses it.

    Args:
        receive: The server's.
        headers: Of the request.
        most_bytes: Size of the body, as sent and decompressed.

    Raises:
        ServiceError: The announced size is too large, or the body has an encoding other than gzip.
    """

    def __init__(self, receive: Receive, headers: Headers, most_bytes: int) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._bytes = 0
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most_bytes:
            raise ServiceError("body_too_large", self._refusal, 413)
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise ServiceError(
                "unsupported_media_type", "the body is compressed: send it as gzip or uncompressed", 415
            )
        self._gzip = zlib.decompressobj(_GZIP) if encoding.endswith("gzip") else None

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: The body is too large, or not valid gzip. FastAPI replaces all other exceptions while it
                reads a body.
        """
        message = await self._receive()
        if self._gzip is not None and message["type"] == "http.request":
            # In a thread: a short body may be a long one compressed.
            message = {**message, "body": await asyncio.to_thread(self._decompressed, message)}
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._most_bytes:
            raise HTTPException(413, self._refusal)
        return message

    def _decompressed(self, message: Message) -> bytes:
        """The bytes that a message adds to the body: at most one more than the body may have."""
        stream, data, parts = self._gzip, message.get("body", b""), []
        room = self._most_bytes + 1 - self._bytes
        try:
            while data and room > 0 and stream is not None:
                if stream.eof:  # gzip allows several streams, one after the other
                    stream = self._gzip = zlib.decompressobj(_GZIP)
                parts.append(stream.decompress(data, room))
                room -= len(parts[-1])
                data = stream.unconsumed_tail or stream.unused_data
        except zlib.error:
            raise HTTPException(400, "the body is not valid gzip, as its Content-Encoding says") from None
        ended = not message.get("more_body", False)
        if ended and room > 0 and stream is not None and not stream.eof:
            raise HTTPException(400, "the body is incomplete: its gzip stream does not end")
        return b"".join(parts)

    @property
    def _refusal(self) -> str:
        return f"the body is larger than the {self._most_bytes:,} bytes allowed (serve.limits.body_bytes)"


async def until_client_leaves(receive: Receive, work: Callable[[Receive], Awaitable[None]]) -> bool:
    """Do the work of a request; cancel it when its client closes the connection.

    Args:
        receive: The request's messages.
        work: Gets messages from the function that it is given.

    Returns:
        Whether the work was finished.
    """
    watched = _Watched(receive)
    working = asyncio.ensure_future(work(watched.receive))
    watching = asyncio.ensure_future(watched.until_it_leaves())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        await working
        return True
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


class _Watched:
    """After the body, only the watcher receives: two receivers would take each other's messages."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._complete = asyncio.Event()
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        if self._complete.is_set():
            await self._left.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left.set()
        if not message.get("more_body", False):
            self._complete.set()
        return message

    async def until_it_leaves(self) -> None:
        await self._complete.wait()
        while not self._left.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._left.set()
