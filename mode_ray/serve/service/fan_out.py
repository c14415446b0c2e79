"""Asking the experts that matter, side by side, each with a deadline; and what is left where one does not answer."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from mode_ray.config.serve import PruningConfig
from mode_ray.routing.mix import keep_share, keep_top, without_experts
from mode_ray.serve.service.errors import overloaded, unavailable
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertClient, ExpertDescription, ExpertUnavailable
from mode_ray.serve.service.observer import Observer

Floats = npt.NDArray[np.floating]
Answer = TypeVar("Answer")
Work = Callable[["TimedExpert", ExpertDescription], Awaitable[Answer]]

_TEXTS_AT_ONCE = 256

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered(Generic[Answer]):
    """What the experts answered.

    Attributes:
        answers: By expert.
        descriptions: Of the experts that answered.
        weights: As they are applied, in the shape of those asked for: 0 for experts that did not answer, sum 1.
        left_out: Experts that belong to the answer and are not in it.
    """

    answers: Mapping[int, Answer]
    descriptions: Mapping[int, ExpertDescription]
    weights: Floats
    left_out: tuple[int, ...]


class TimedExpert:
    """A client whose every call has a deadline; many texts are asked for piece by piece, each with its own.

    Args:
        client: Whom to ask.
        deadline_seconds: Of one call.
    """

    def __init__(self, client: ExpertClient, deadline_seconds: float) -> None:
        self.id = client.id
        self._client = client
        self._deadline_seconds = deadline_seconds

    async def describe(self) -> ExpertDescription:
        """See `ExpertClient`; a deadline that passes is ExpertUnavailable, here as below."""
        return await self._in_time(self._client.describe())

    async def encode_images(self, images_bhw3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `ExpertClient`."""
        return await self._in_time(self._client.encode_images(images_bhw3))

    async def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `ExpertClient`."""
        pieces = [
            await self._in_time(self._client.encode_texts(texts[start : start + _TEXTS_AT_ONCE]))
            for start in range(0, len(texts), _TEXTS_AT_ONCE)
        ]
        return np.concatenate(pieces)

    async def _in_time(self, call: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await call
        except TimeoutError:
            raise ExpertUnavailable(f"no answer in {self._deadline_seconds:g} seconds") from None


class FanOut:
    """Asks experts.

    Args:
        pruning: Which experts are asked.
        deadline_seconds: For each call.
        image_size: What the images are resized to; an expert that takes other ones cannot be asked.
        observer: Told who was asked, and how long it took.
    """

    def __init__(
        self, pruning: PruningConfig, deadline_seconds: float, image_size: tuple[int, int], observer: Observer
    ) -> None:
        self._pruning = pruning
        self._deadline_seconds = deadline_seconds
        self._image_size = image_size
        self._observer = observer

    async def gather(
        self,
        clients: Mapping[int, ExpertClient],
        weights: Floats,
        work: Work[Answer],
        *,
        pruned: bool = True,
    ) -> Gathered[Answer]:
        """Ask the experts that pruning keeps; where none of them answers, the others.

        Args:
            clients: The experts there are.
            weights: [experts] of a task, or [texts, experts].
            work: What to ask of an expert.
            pruned: Whether to prune; else all are asked.

        Raises:
            ServiceError: An expert's queue is full, or none answers.
        """
        n = weights.shape[-1]
        everybody = set(range(n))
        wanted = _used(self._pruned(weights)) if pruned else everybody
        missing = everybody - set(clients)
        answers: dict[int, tuple[ExpertDescription, Answer]] = {}
        while not answers:
            if len(missing) == n:
                raise unavailable("no expert answers at present")
            kept = without_experts(weights, sorted(missing))
            if pruned:
                kept = self._pruned(kept)
            asked = sorted((_used(kept) if pruned else everybody) - missing)
            self._observer.observe_experts(len(asked))
            outcomes = await _side_by_side([self._ask(clients[expert], work) for expert in asked])
            answers = {expert: outcome for expert, outcome in zip(asked, outcomes, strict=True) if outcome is not None}
            missing |= set(asked) - set(answers)
        left_out = tuple(sorted(wanted - set(answers)))
        if left_out:
            self._observer.count_degraded()
        return Gathered(
            answers={expert: answer for expert, (_, answer) in answers.items()},
            descriptions={expert: description for expert, (description, _) in answers.items()},
            weights=without_experts(kept, sorted(everybody - set(answers))),
            left_out=left_out,
        )

    def _pruned(self, weights: Floats) -> Floats:
        if self._pruning.experts is not None:
            return keep_top(weights, self._pruning.experts)
        return keep_share(weights, self._pruning.share)

    async def _ask(self, client: ExpertClient, work: Work[Answer]) -> tuple[ExpertDescription, Answer] | None:
        """The answer; None where the expert is down or does not answer in time."""
        began = time.monotonic()
        try:
            expert = TimedExpert(client, self._deadline_seconds)
            description = await expert.describe()
            if description.image_size != self._image_size:
                raise ExpertUnavailable(f"it takes images of {description.image_size}, not {self._image_size}")
            answer = await work(expert, description)
        except ExpertBusy:
            raise overloaded(f"expert {client.id} has its queue full") from None
        except ExpertUnavailable as error:
            _logger.warning("expert %d is left out: %s", client.id, error)
            return None
        self._observer.observe_expert(client.id, time.monotonic() - began)
        return description, answer


def _used(weights: Floats) -> set[int]:
    """Experts that have a weight."""
    return set(np.flatnonzero(np.atleast_2d(weights).any(axis=0)).tolist())


async def _side_by_side(calls: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """All answers; where one raises, or the caller gives up, the others are given up too."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
