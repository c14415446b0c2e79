"""A result that is computed from the embeddings of many texts, slice by slice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from mode_ray.serve.service.turns import Rows

Result = TypeVar("Result")


class Gradual(Generic[Result]):
    """Computed once for all requests that need it.

    One request at a time computes, and the others wait for it. If its client leaves or its deadline passes, it stops:
    nothing is computed that nobody waits for. The next request resumes after the finished slices.

    Attributes:
        result: None until it is complete.
    """

    def __init__(self) -> None:
        self.result: Result | None = None
        self._slices: list[Rows] = []
        self._one_at_a_time = asyncio.Lock()
        self._failures = 0
        self._error: Exception | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the finished slices, or of the result if it is an array."""
        return sum(rows.nbytes for rows in self._slices) + getattr(self.result, "nbytes", 0)

    async def get(
        self,
        texts: Sequence[str],
        encode: Callable[[Sequence[str]], AsyncIterator[Rows]],
        finish: Callable[[Rows], Awaitable[Result]],
    ) -> Result:
        """The result.

        Args:
            texts: The texts, the same for all requests.
            encode: Yields the embeddings of texts, slice by slice.
            finish: Computes the result from the embeddings of all texts.

        Raises:
            Exception: What `encode` or `finish` raised, for all requests that waited at that time.
        """
        failures = self._failures
        async with self._one_at_a_time:
            if self.result is not None:
                return self.result
            if self._error is not None and self._failures > failures:
                raise self._error
            try:
                async for rows in encode(texts[sum(map(len, self._slices)) :]):
                    self._slices.append(rows)
                self.result = await finish(np.concatenate(self._slices))
            except Exception as error:
                self._failures += 1
                self._error = error
                raise
            self._slices.clear()
            return self.result
