"""What many requests need is computed once, by those that are still there."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from mode_ray.serve.service.gradual import Gradual
from mode_ray.serve.service.turns import Rows

TEXTS = [str(number) for number in range(10)]


class Encoder:
    """Gives every text its number, in slices of two; it waits for `go` before slice `stops_at`."""

    def __init__(self, stops_at: int = 100, error: Exception | None = None) -> None:
        self.encoded: list[str] = []
        self.stopped, self.go = asyncio.Event(), asyncio.Event()
        self._stops_at = stops_at
        self._error = error

    async def slices(self, texts: Sequence[str]) -> AsyncIterator[Rows]:
        for start in range(0, len(texts), 2):
            if len(self.encoded) == self._stops_at:
                self.stopped.set()
                await self.go.wait()
                if self._error:
                    raise self._error
            piece = texts[start : start + 2]
            self.encoded += piece
            await asyncio.sleep(0)
            yield np.array([[float(text)] for text in piece], np.float32)


async def total(rows: Rows) -> float:
    return float(rows.sum())


def test_all_requests_get_the_result_of_one_computation() -> None:
    async def ask() -> None:
        encoder, gradual = Encoder(), Gradual[float]()
        found = await asyncio.gather(*(gradual.get(TEXTS, encoder.slices, total) for _ in range(3)))
        assert found == [45.0] * 3
        assert await gradual.get(TEXTS, encoder.slices, total) == 45.0
        assert encoder.encoded == TEXTS

    asyncio.run(ask())


def test_a_cancelled_request_stops_and_the_next_one_resumes() -> None:
    async def ask() -> None:
        encoder, gradual = Encoder(stops_at=4), Gradual[float]()
        first = asyncio.create_task(gradual.get(TEXTS, encoder.slices, total))
        await encoder.stopped.wait()
        assert gradual.size_bytes == 16
        first.cancel()
        await asyncio.sleep(0.01)
        assert encoder.encoded == TEXTS[:4], "nobody waits for more"
        encoder.go.set()
        assert await gradual.get(TEXTS, encoder.slices, total) == 45.0
        assert encoder.encoded == TEXTS

    asyncio.run(ask())


def test_a_waiting_request_takes_over_from_a_cancelled_one() -> None:
    async def ask() -> None:
        encoder, gradual = Encoder(stops_at=4), Gradual[float]()
        first = asyncio.create_task(gradual.get(TEXTS, encoder.slices, total))
        await encoder.stopped.wait()
        second = asyncio.create_task(gradual.get(TEXTS, encoder.slices, total))
        await asyncio.sleep(0)
        first.cancel()
        encoder.go.set()
        assert await second == 45.0
        assert encoder.encoded == TEXTS

    asyncio.run(ask())


def test_an_error_is_that_of_all_who_wait_and_not_of_later_ones() -> None:
    async def ask() -> None:
        encoder, gradual = Encoder(stops_at=4, error=ValueError("down")), Gradual[float]()
        waiting = [asyncio.create_task(gradual.get(TEXTS, encoder.slices, total)) for _ in range(3)]
        await encoder.stopped.wait()
        encoder.go.set()
        for task in waiting:
            with pytest.raises(ValueError, match="down"):
                await task
        assert await gradual.get(TEXTS, Encoder().slices, total) == 45.0

    asyncio.run(ask())
