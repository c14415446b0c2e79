"""Asks several experts at the same time, each with a deadline, and mixes without those that do not answer."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from mode_ray.config.serve import ServeConfig
from mode_ray.routing.mix import keep_share, keep_top, without_experts
from mode_ray.serve.service.errors import overloaded, unavailable
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertClient, ExpertDescription, ExpertUnavailable
from mode_ray.serve.service.metrics import ServeMetrics
from mode_ray.serve.service.turns import Turns

Floats = npt.NDArray[np.floating]
Answer = TypeVar("Answer")
Work = Callable[["TimedExpert", ExpertDescription], Awaitable[Answer]]

_CALLS_PER_DEADLINE = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered(Generic[Answer]):
    """The answers of several experts.

    Attributes:
        answers: By expert id, in the order of the ids.
        descriptions: Of the experts that answered.
        weights: As applied, in the shape of the weights that were given: 0 for experts that did not answer, sum 1.
        left_out: Experts that belong to the answer and did not answer.
    """

    answers: Mapping[int, Answer]
    descriptions: Mapping[int, ExpertDescription]
    weights: Floats
    left_out: tuple[int, ...]


class TimedExpert:
    """An `ExpertClient` whose calls raise ExpertUnavailable after a deadline.

    Args:
        client: The expert.
        deadline_seconds: Of one call. Many texts take several calls, each with this deadline.
        turns: Finds out how many texts a call has: calls take a small part of the deadline, also of a busy expert.
    """

    def __init__(self, client: ExpertClient, deadline_seconds: float, turns: Turns | None = None) -> None:
        self.id = client.id
        self._client = client
        self._deadline_seconds = deadline_seconds
        self._turns = turns or Turns()

    async def describe(self) -> ExpertDescription:
        """See `ExpertClient`."""
        return await self._in_time(self._client.describe())

    async def encode_images(self, images_bhw3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `ExpertClient`."""
        return await self._in_time(self._client.encode_images(images_bhw3))

    async def encode_texts(self, texts: Sequence[str]) -> AsyncIterator[npt.NDArray[np.float32]]:
        """Unit-norm embeddings of texts, in slices [l, d] in their order."""
        start = 0
        while start < len(texts):
            piece = texts[start : start + self._turns.size]
            start += len(piece)
            began = time.monotonic()
            rows_ld = await self._in_time(self._client.encode_texts(piece))
            self._turns.took(len(piece), time.monotonic() - began)
            yield rows_ld

    async def _in_time(self, call: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await call
        except TimeoutError:
            raise ExpertUnavailable(f"no answer within {self._deadline_seconds:g} seconds") from None


class FanOut:
    """Asks the experts of a task.

    Args:
        config: Pruning and the deadline of a call.
        image_size: Size of the prepared images; an expert that takes another size counts as unavailable.
        metrics: Records the experts that were asked and how long they took.
    """

    def __init__(self, config: ServeConfig, image_size: tuple[int, int], metrics: ServeMetrics) -> None:
        self._pruning = config.pruning
        self._deadline_seconds = config.expert_deadline_seconds
        self._image_size = image_size
        self._metrics = metrics
        self._turns: dict[int, Turns] = {}

    async def gather(
        self,
        clients: Mapping[int, ExpertClient],
        weights: Floats,
        work: Work[Answer],
        *,
        pruned: bool = True,
    ) -> Gathered[Answer]:
        """Ask the experts that pruning keeps, and the others if none of them answers.

        Args:
            clients: The experts by id.
            weights: [experts] of a task, or [texts, experts].
            work: The calls to one expert.
            pruned: Whether to prune; otherwise all experts are asked.

        Raises:
            ServiceError: An expert's queue is full, or no expert answers.
        """
        n = weights.shape[-1]
        everybody = set(range(n))
        wanted = _used(self._pruned(weights)) if pruned else everybody
        missing = everybody - set(clients)
        found: dict[int, tuple[ExpertDescription, Answer]] = {}
        while not found:
            if len(missing) == n:
                raise unavailable("no expert answers at present")
            kept = without_experts(weights, sorted(missing))
            if pruned:
                kept = self._pruned(kept)
            asked = sorted((_used(kept) if pruned else everybody) - missing)
            self._metrics.experts_per_request(len(asked))
            outcomes = await side_by_side([self._ask(clients[expert], work) for expert in asked])
            found = {expert: outcome for expert, outcome in zip(asked, outcomes, strict=True) if outcome is not None}
            missing |= set(asked) - set(found)
        left_out = tuple(sorted(wanted - set(found)))
        if left_out:
            self._metrics.degraded(1.0)
        return Gathered(
            answers={expert: answer for expert, (_, answer) in found.items()},
            descriptions={expert: description for expert, (description, _) in found.items()},
            weights=without_experts(kept, sorted(everybody - set(found))),
            left_out=left_out,
        )

    def _pruned(self, weights: Floats) -> Floats:
        if self._pruning.experts is not None:
            return keep_top(weights, self._pruning.experts)
        return keep_share(weights, self._pruning.share)

    async def _ask(self, client: ExpertClient, work: Work[Answer]) -> tuple[ExpertDescription, Answer] | None:
        """The answer; None if the expert is down or does not answer in time."""
        began = time.monotonic()
        try:
            turns = self._turns.setdefault(client.id, Turns(self._deadline_seconds / _CALLS_PER_DEADLINE))
            expert = TimedExpert(client, self._deadline_seconds, turns)
            description = await expert.describe()
            if description.image_size != self._image_size:
                raise ExpertUnavailable(f"it takes images of {description.image_size}, not {self._image_size}")
            answer = await work(expert, description)
        except ExpertBusy:
            raise overloaded(f"the queue of expert {client.id} is full") from None
        except ExpertUnavailable as error:
            _logger.warning("expert %d is left out: %s", client.id, error)
            return None
        self._metrics.expert_seconds(time.monotonic() - began, expert=str(client.id))
        return description, answer


def _used(weights: Floats) -> set[int]:
    """Experts with a weight above 0."""
    return set(np.flatnonzero(np.atleast_2d(weights).any(axis=0)).tolist())


async def side_by_side(calls: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """All answers. If a call raises or the caller is cancelled, the other calls are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
