"""Load on a served ensemble, and what came back."""

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

CLIENT_TIMEOUT_SECONDS = 60.0
NO_ANSWER = 0


@dataclass(frozen=True)
class Reply:
    """One request's fate.

    Attributes:
        image: Which image was sent.
        began_seconds: When, by the monotonic clock.
        seconds: How long it took.
        status: The HTTP status; 0 where the connection broke.
        retry_after: The header.
        answer: The JSON of a 200, else the text.
    """

    image: int
    began_seconds: float
    seconds: float
    status: int
    retry_after: str | None
    answer: Any

    @property
    def ended_seconds(self) -> float:
        return self.began_seconds + self.seconds


class Load:
    """Sends single images, closed-loop by a number of clients or at a rate, and keeps every reply.

    Args:
        url: Of `/v1/classify`.
        images: Encoded images; sent in turn.
        query: Query parameters.
    """

    def __init__(self, url: str, images: Sequence[bytes], query: Mapping[str, str]) -> None:
        self._url = url
        self._images = images
        self._query = dict(query)
        self._sent = 0
        self._ending = False
        self.replies: list[Reply] = []

    def end(self) -> None:
        """Send nothing more; what is on its way is waited for."""
        self._ending = True

    def closed_loop(self, clients: int, seconds: float = math.inf, requests: float = math.inf) -> None:
        """Every client sends its next request when the last is answered: until `end`, for a time, or so many."""
        asyncio.run(self._closed_loop(clients, seconds, requests))

    def at_rate(self, requests_per_second: float, seconds: float) -> None:
        """Send at a rate, whatever comes back."""
        asyncio.run(self._at_rate(requests_per_second, seconds))

    async def _closed_loop(self, clients: int, seconds: float, requests: float) -> None:
        deadline = time.monotonic() + seconds

        async def client(session: aiohttp.ClientSession) -> None:
            while not self._ending and time.monotonic() < deadline and self._sent < requests:
                await self._send(session)

        async with self._session() as session:
            await asyncio.gather(*(client(session) for _ in range(clients)))

    async def _at_rate(self, requests_per_second: float, seconds: float) -> None:
        began = time.monotonic()
        tasks: list[asyncio.Task[None]] = []
        async with self._session() as session:
            while (elapsed := time.monotonic() - began) < seconds:
                tasks += [
                    asyncio.create_task(self._send(session))
                    for _ in range(int(elapsed * requests_per_second) + 1 - len(tasks))
                ]
                await asyncio.sleep(0.5 / requests_per_second)
            await asyncio.gather(*tasks)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=CLIENT_TIMEOUT_SECONDS)
        )

    async def _send(self, session: aiohttp.ClientSession) -> None:
        image = self._sent % len(self._images)
        self._sent += 1
        began = time.monotonic()
        status, retry_after, answer = NO_ANSWER, None, ""
        headers = {"Content-Type": "image/png"}
        try:
            async with session.post(self._url, data=self._images[image], params=self._query, headers=headers) as got:
                text = await got.text()
                status, retry_after = got.status, got.headers.get("Retry-After")
                answer = json.loads(text) if status == 200 else text
        except (aiohttp.ClientError, TimeoutError) as error:
            answer = repr(error)
        self.replies.append(Reply(image, began, time.monotonic() - began, status, retry_after, answer))
