"""The ensemble as a service: registers and routes tasks, scores and embeds images and texts; without HTTP and Ray.

The event loop is never blocked: the caption encoder runs in its own thread; decoding and arithmetic share a few
threads. A request keeps the clients that it began with, whatever `set_clients` does meanwhile.

Requests take turns: each has at most one slice of texts in the queue of the caption encoder and of every expert, and
one image per thread being decoded. A request that is cancelled, because its client left, needs no further turn.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mode_ray.config.evaluate import RoutingRule
from mode_ray.config.serve import ServeConfig
from mode_ray.errors import DataError
from mode_ray.models.preprocess import ImageInput
from mode_ray.pairs.images import WEB_FORMATS
from mode_ray.routing.mix import (
    concatenated_images,
    concatenated_texts,
    ensemble_scores,
    per_query_scores,
    probabilities,
)
from mode_ray.serve.service.errors import ServiceError, over_limit, unavailable
from mode_ray.serve.service.expert_client import ExpertClient, ExpertDescription, ExpertUnavailable
from mode_ray.serve.service.fan_out import FanOut, Gathered, TimedExpert, side_by_side
from mode_ray.serve.service.metrics import ServeMetrics
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_cache import CachedTask, Classifier
from mode_ray.serve.service.task_definition import TaskDefinition
from mode_ray.serve.service.task_router import TaskRouter
from mode_ray.serve.service.task_routing import RoutedTask, class_rows
from mode_ray.serve.service.turns import Rows

Floats = npt.NDArray[np.floating]
Pixels = npt.NDArray[np.uint8]
_Result = TypeVar("_Result")
_First = TypeVar("_First")
_Second = TypeVar("_Second")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Images scored against a task.

    Attributes:
        task: The task.
        scores_il: Weighted means of the experts' cosines.
        probabilities_il: softmax over the task's classes, scaled by the weighted mean of the experts' logit scales.
        cosines_il: Of every expert that answered, by id.
        weights: As applied, [experts], or [texts, experts] if every text was routed by itself.
        left_out: Experts that belong to the answer and did not answer.
    """

    task: RoutedTask
    scores_il: Floats
    probabilities_il: Floats
    cosines_il: Mapping[int, Floats]
    weights: Floats
    left_out: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Embeddings by several experts.

    Attributes:
        by_expert: Unit rows of every expert that answered.
        concatenated: All side by side; those of texts are multiplied by the weights of the experts.
        dimensions: Width of every expert's part, in the order of the ids.
        left_out: Experts that did not answer; their part is 0.
        truncated: Texts that are longer than the context of the experts, which ignore their end.
    """

    by_expert: Mapping[int, Floats]
    concatenated: Floats
    dimensions: Mapping[int, int]
    left_out: tuple[int, ...]
    truncated: tuple[str, ...] = ()


class EnsembleService:
    """Answers requests with the experts of a run.

    Args:
        served: The run.
        clients: The available experts, by id.
        config: Limits, pruning, deadlines, caches.
        metrics: Metrics of this process.

    Raises:
        UsageError: The caption encoder cannot be found.
        DataError: The clustering was made with another encoder.
    """

    def __init__(
        self, served: ServedRun, clients: Mapping[int, ExpertClient], config: ServeConfig, metrics: ServeMetrics
    ) -> None:
        self.served = served
        self.config = config
        self.metrics = metrics
        self._clients = dict(clients)
        self._tasks = TaskRouter(served, config, metrics)
        self._images = ImageInput(served.geometry, config.limits.image_pixels, served.config.images, WEB_FORMATS)
        self._fan_out = FanOut(config, served.geometry.size, metrics)
        self._cores = os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(self._cores, thread_name_prefix="images")
        metrics.queue_length(0.0)  # a gauge that was never set is not exported

    def set_clients(self, clients: Mapping[int, ExpertClient]) -> None:
        """Use these experts from now on; running requests keep the experts that they began with."""
        self._clients = dict(clients)

    def close(self) -> None:
        """Stop the threads; release the experts, the caption encoder and the cached tasks; running requests fail.

        FastAPI caches the functions behind the routes for the life of the process (`fastapi.dependencies.models`, 4096
        entries). They refer to the service, so a closed service stays in memory: it must hold nothing large.
        """
        self._tasks.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._clients = {}

    async def describe_experts(self) -> dict[int, ExpertDescription | None]:
        """All experts of the run; None for those that are down."""
        clients = self._clients

        async def describe(expert: int) -> ExpertDescription | None:
            if expert not in clients:
                return None
            try:
                return await TimedExpert(clients[expert], self.config.expert_deadline_seconds).describe()
            except ExpertUnavailable:
                return None

        found = await asyncio.gather(*(describe(expert) for expert in range(self.served.n)))
        return dict(enumerate(found))

    async def register(self, definition: TaskDefinition) -> RoutedTask:
        """Route a task and store it, so that every router of the run knows its id."""
        return await self._tasks.register(definition)

    async def task(self, task: TaskDefinition | str) -> RoutedTask:
        """A task's weights, by its definition or its id.

        Raises:
            ServiceError: There is no such task, it exceeds a limit, or it cannot be routed.
        """
        _, routed = await self._tasks.task(task)
        return routed

    async def score(
        self, images: Sequence[bytes], task: TaskDefinition | str, *, each_text_routed: bool = False
    ) -> Scores:
        """Score images against a task.

        Args:
            images: Encoded images.
            task: Its definition or id.
            each_text_routed: Whether every text is a task of its own, as in image retrieval.

        Raises:
            ServiceError: The request is wrong or too large, or no expert answers.
        """
        clients = self._clients
        pixels_bhw3, (cached, routed) = await _both(self._prepare(images), self._tasks.task(task))
        weights: Floats = routed.weights_c
        if each_text_routed:
            weights = await self._tasks.weights_of_each(cached)

        async def cosines(expert: TimedExpert, description: ExpertDescription) -> Floats:
            features_bd, rows_ld = await _both(
                expert.encode_images(pixels_bhw3), self._classifier(cached, expert, description)
            )
            return features_bd @ rows_ld.T

        gathered = await self._fan_out.gather(clients, weights, cosines)
        self._tasks.shrink_cache()
        with self._timed("ensemble"):
            return await self._run(self._threads, self._mixed, routed, gathered)

    async def embed_images(self, images: Sequence[bytes]) -> Embedded:
        """Embeddings of all experts side by side; they depend on no task, so one index of them serves all tasks.

        Raises:
            ServiceError: As `score`, or an expert does not answer: rows of an index must be complete.
        """
        clients = self._clients
        pixels_bhw3 = await self._prepare(images)
        uniform_c = np.full(self.served.n, 1.0 / self.served.n)

        async def features(expert: TimedExpert, _: ExpertDescription) -> Floats:
            return await expert.encode_images(pixels_bhw3)

        gathered = await self._fan_out.gather(clients, uniform_c, features, pruned=False)
        if gathered.left_out:
            raise unavailable(f"experts {list(gathered.left_out)} do not answer, and an image's embedding needs all")
        return Embedded(
            by_expert=gathered.answers,
            concatenated=concatenated_images(list(gathered.answers.values())),
            dimensions={expert: rows.shape[1] for expert, rows in gathered.answers.items()},
            left_out=(),
        )

    async def embed_texts(
        self,
        texts: Sequence[str],
        rule: RoutingRule | None = None,
        *,
        as_one_task: bool = False,
        pruned: bool = True,
    ) -> Embedded:
        """Queries for an index of images: every expert's embedding times its weight.

        The inner product with an image's embedding is the score of `score` with `each_text_routed` or, with
        `as_one_task`, without it.

        Args:
            texts: The queries.
            rule: Another routing rule than the run's.
            as_one_task: Whether all texts together are the task; by default each is a task of its own.
            pruned: Whether pruning applies, as it does to scores; otherwise all experts are asked.

        Raises:
            ServiceError: As `score`, or the width of an expert's part is unknown because it never answered.
        """
        clients = self._clients
        definition = TaskDefinition(texts=tuple(texts), rule=rule or self.served.config.routing.rule)
        with self._tasks.while_needed(definition) as cached:
            if as_one_task:
                weights: Floats = (await self.task(definition)).weights_c
            else:
                weights = await self._tasks.weights_of_each(cached)

            async def features(expert: TimedExpert, description: ExpertDescription) -> Floats:
                return await self._classifier(cached, expert, description)

            gathered = await self._fan_out.gather(clients, weights, features, pruned=pruned)
        dimensions = await self._dimensions(gathered.descriptions)
        parts = [
            gathered.answers.get(expert, np.zeros((len(texts), dimension), np.float32))
            for expert, dimension in dimensions.items()
        ]
        cut = await self._tasks.truncated(texts)
        return Embedded(
            by_expert=gathered.answers,
            concatenated=concatenated_texts(parts, gathered.weights).astype(np.float32),
            dimensions=dimensions,
            left_out=gathered.left_out,
            truncated=tuple(text for text, is_cut in zip(texts, cut, strict=True) if is_cut),
        )

    async def _dimensions(self, known: Mapping[int, ExpertDescription]) -> dict[int, int]:
        """The width of every expert's embeddings, also of experts that did not answer this request."""
        described: dict[int, ExpertDescription | None] = {**known}
        if len(known) < self.served.n:
            described = {**await self.describe_experts(), **known}
        dimensions = {}
        for expert in range(self.served.n):
            description = described[expert]
            if description is None:
                raise unavailable(f"expert {expert} does not answer, so the width of its embeddings is unknown")
            dimensions[expert] = description.dimension
        return dimensions

    async def _classifier(self, task: CachedTask, expert: TimedExpert, description: ExpertDescription) -> Classifier:
        class_texts = task.definition.class_texts()

        async def finish(flat_td: Rows) -> Classifier:
            return await self._run(self._threads, class_rows, class_texts, flat_td)

        texts = [text for texts in class_texts for text in texts]
        return await task.classifier(expert.id, description).get(texts, expert.encode_texts, finish)

    async def _prepare(self, images: Sequence[bytes]) -> Pixels:
        """Decode and resize all images, uint8 [b, h, w, 3]."""
        limits = self.config.limits
        if not images:
            raise ServiceError("no_images", "give at least one image", field="images")
        if len(images) > limits.images:
            raise over_limit("images", len(images), limits.images, "images", "images")
        room = asyncio.Semaphore(self._cores)  # more images of one request would delay those of others

        async def prepare(number: int, data: bytes) -> Pixels:
            async with room:
                return await self._run(self._threads, self._images.prepare, data, f"image {number}")

        with self._timed("decode"):
            try:
                return np.stack(await side_by_side([prepare(*image) for image in enumerate(images, start=1)]))
            except DataError as error:
                raise ServiceError("bad_image", str(error), field="images") from None

    def _mixed(self, routed: RoutedTask, gathered: Gathered[Floats]) -> Scores:
        n = self.served.n
        some = next(iter(gathered.answers.values()))
        cosines_cil = np.zeros((n, *some.shape), np.float32)
        logit_scales_c = np.zeros(n)
        for expert, cosines_il in gathered.answers.items():
            cosines_cil[expert] = cosines_il
            logit_scales_c[expert] = gathered.descriptions[expert].logit_scale
        weights = gathered.weights
        each = weights.ndim == 2
        scores_il = per_query_scores(cosines_cil, weights) if each else ensemble_scores(cosines_cil, weights)
        return Scores(
            task=routed,
            scores_il=scores_il,
            probabilities_il=probabilities(scores_il, weights.mean(axis=0) if each else weights, logit_scales_c),
            cosines_il=gathered.answers,
            weights=weights,
            left_out=gathered.left_out,
        )

    async def _run(self, executor: Executor, function: Callable[..., _Result], *arguments: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.metrics.step_seconds(time.monotonic() - began, step=step)


async def _both(first: Awaitable[_First], second: Awaitable[_Second]) -> tuple[_First, _Second]:
    """Both results. If one fails, the other is cancelled."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
