"""The ensemble as a service: tasks, and images scored against them; no HTTP and no Ray in it.

Nothing blocks the event loop: the caption encoder has a thread of its own, decoding and arithmetic share a few. The
service keeps the clients that a request began with to its end, whatever `set_clients` does meanwhile.
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
from mode_ray.routing.mix import (
    concatenated_images,
    concatenated_texts,
    ensemble_scores,
    per_query_scores,
    probabilities,
)
from mode_ray.serve.service.errors import ServiceError, over_limit, overloaded, unavailable
from mode_ray.serve.service.expert_client import ExpertClient, ExpertDescription, ExpertUnavailable
from mode_ray.serve.service.fan_out import FanOut, Gathered, TimedExpert
from mode_ray.serve.service.observer import Observer
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_cache import CachedTask, TaskCache
from mode_ray.serve.service.task_definition import TaskDefinition, check_definition
from mode_ray.serve.service.task_routing import RoutedTask, TaskRouter, class_rows
from mode_ray.serve.service.task_store import TaskStore

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
        probabilities_il: softmax over the task's classes, sharpened by the experts' weighted logit scales.
        cosines_il: Of every expert that answered, by id.
        weights: As they were applied, [experts], or [texts, experts] where every text was routed by itself.
        left_out: Experts that belong to the answer and are not in it.
    """

    task: RoutedTask
    scores_il: Floats
    probabilities_il: Floats
    cosines_il: Mapping[int, Floats]
    weights: Floats
    left_out: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Rows of several experts.

    Attributes:
        by_expert: Unit rows of every expert that answered.
        concatenated: All side by side; texts times the weights of the experts.
        dimensions: Width of every expert's part, in the order of the ids.
        left_out: Experts whose part is 0 because they did not answer.
    """

    by_expert: Mapping[int, Floats]
    concatenated: Floats
    dimensions: Mapping[int, int]
    left_out: tuple[int, ...]


class EnsembleService:
    """Answers requests with the experts of a run.

    Args:
        served: The run.
        clients: The experts there are, by id.
        config: Limits, pruning, deadlines, caches.
        metrics: Told what happens.

    Raises:
        UsageError: The caption encoder cannot be found.
        DataError: The clustering is of another encoder.
    """

    def __init__(
        self, served: ServedRun, clients: Mapping[int, ExpertClient], config: ServeConfig, metrics: Observer
    ) -> None:
        self.served = served
        self.config = config
        self.metrics = metrics
        self._clients = dict(clients)
        self._router: TaskRouter | None = TaskRouter(served, served.load_encoder())
        self._images = ImageInput(served.geometry, config.limits.image_pixels)
        self._fan_out = FanOut(config.pruning, config.expert_deadline_seconds, served.geometry.size, metrics)
        self._cache = self._empty_cache()
        self._store = TaskStore(served.task_directory, config.max_stored_tasks)
        self._encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="caption-encoder")
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="images")
        self._waiting_tasks = 0
        metrics.set_queue(0)  # what was never set would not be shown

    def set_clients(self, clients: Mapping[int, ExpertClient]) -> None:
        """Ask these experts from now on; requests under way end with those they began with."""
        self._clients = dict(clients)

    def close(self) -> None:
        """End the threads and release the experts, the caption encoder and the cached tasks; requests under way fail.

        FastAPI caches the functions behind the routes for the life of the process (`fastapi.dependencies.models`, 4096
        entries). They refer to the service, so a closed service stays in memory: it must hold nothing large.
        """
        self._encoder_thread.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._clients = {}
        self._router = None
        self._cache = self._empty_cache()  # a new one: requests under way may be iterating over the old one

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
        """Route a task and keep it, so that its id can be used from now on, with any router of the run."""
        task = await self._task(definition)
        try:
            await self._run(self._threads, self._store.save, definition)
        except OSError:
            raise unavailable("the task cannot be stored at present") from None
        return task.routed

    async def task(self, task: TaskDefinition | str) -> RoutedTask:
        """A task's weights, by its definition or its id.

        Raises:
            ServiceError: There is no such task, it exceeds a limit, or it cannot be routed.
        """
        return (await self._task(task)).routed

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
        pixels_bhw3, cached = await _both(self._prepare(images), self._task(task))
        routed = cached.routed
        weights: Floats = routed.weights_c
        if each_text_routed:
            texts = [texts[0] for texts in routed.definition.class_texts()]
            weights = await self._run(
                self._encoder_thread, self._open_router().weights_of_each, texts, routed.definition.rule
            )

        async def cosines(expert: TimedExpert, description: ExpertDescription) -> Floats:
            features_bd, rows_ld = await _both(
                expert.encode_images(pixels_bhw3), self._classifier(cached, expert, description)
            )
            return features_bd @ rows_ld.T

        gathered = await self._fan_out.gather(clients, weights, cosines)
        self._cache.shrink()
        with self._timed("ensemble"):
            return await self._run(self._threads, self._mixed, routed, gathered)

    async def embed_images(self, images: Sequence[bytes]) -> Embedded:
        """Task-free embeddings: all experts' side by side, for an index that serves any task.

        Raises:
            ServiceError: As `score`; also where an expert does not answer: an index must not have gaps.
        """
        clients = self._clients
        pixels_bhw3 = await self._prepare(images)
        everybody = np.full(self.served.n, 1.0 / self.served.n)

        async def features(expert: TimedExpert, _: ExpertDescription) -> Floats:
            return await expert.encode_images(pixels_bhw3)

        gathered = await self._fan_out.gather(clients, everybody, features, pruned=False)
        if gathered.left_out:
            raise unavailable(f"experts {list(gathered.left_out)} do not answer, and an image's embedding needs all")
        by_expert = dict(sorted(gathered.answers.items()))
        return Embedded(
            by_expert=by_expert,
            concatenated=concatenated_images(list(by_expert.values())),
            dimensions={expert: rows.shape[1] for expert, rows in by_expert.items()},
            left_out=(),
        )

    async def embed_texts(
        self, texts: Sequence[str], rule: RoutingRule | None = None, *, as_one_task: bool = False
    ) -> Embedded:
        """Queries for an index of images: every expert's embedding times its weight.

        Args:
            texts: The queries.
            rule: Of routing.
            as_one_task: Whether all texts together are the task; by default each is one of its own.

        Raises:
            ServiceError: As `score`; also where an expert never told its dimension.
        """
        clients = self._clients
        chosen = rule or self.served.config.routing.rule
        definition = TaskDefinition(texts=tuple(texts), rule=chosen)
        check_definition(definition, self.config.limits)
        weights: Floats
        if as_one_task:
            weights = (await self.task(definition)).weights_c
        else:
            with self._timed("route"):
                weights = await self._run(self._encoder_thread, self._open_router().weights_of_each, texts, chosen)

        async def features(expert: TimedExpert, _: ExpertDescription) -> Floats:
            return await expert.encode_texts(texts)

        # Every expert is asked, whatever its weight: the sum over all is what the index defines.
        gathered = await self._fan_out.gather(clients, weights, features, pruned=False)
        known = gathered.descriptions
        others = await self.describe_experts() if len(known) < self.served.n else {}
        dimensions = {}
        for expert in range(self.served.n):
            description = known.get(expert) or others.get(expert)
            if description is None:
                raise unavailable(
                    f"expert {expert} does not answer, and its part of the embedding is of unknown width"
                )
            dimensions[expert] = description.dimension
        rows = [
            gathered.answers.get(expert, np.zeros((len(texts), dimension), np.float32))
            for expert, dimension in dimensions.items()
        ]
        return Embedded(
            by_expert=dict(sorted(gathered.answers.items())),
            concatenated=concatenated_texts(rows, gathered.weights).astype(np.float32),
            dimensions=dimensions,
            left_out=gathered.left_out,
        )

    def _empty_cache(self) -> TaskCache:
        return TaskCache(self.config.cached_tasks, self.config.cached_task_bytes)

    def _open_router(self) -> TaskRouter:
        router = self._router
        if router is None:
            raise unavailable("the service is closed")
        return router

    async def _task(self, task: TaskDefinition | str) -> CachedTask:
        task_id = task if isinstance(task, str) else task.id
        found = self._cache.get(task_id)
        self.metrics.count_cache(found is not None)
        if found is not None:
            return found
        if isinstance(task, str):
            try:
                stored = await self._run(self._threads, self._store.load, task)
            except OSError:
                raise unavailable("the stored tasks cannot be read at present") from None
            if stored is None:
                raise ServiceError("unknown_task", "there is no task of this id: register it first", 404, field="task")
            task = stored
        check_definition(task, self.config.limits)
        if self._waiting_tasks >= self.config.max_queued_requests:
            raise overloaded("too many new tasks are waiting for the caption encoder")
        self._waiting_tasks += 1
        try:
            with self._timed("route"):
                routed = await self._run(self._encoder_thread, self._open_router().route, task)
        finally:
            self._waiting_tasks -= 1
        return self._cache.put(routed)

    async def _classifier(self, task: CachedTask, expert: TimedExpert, description: ExpertDescription) -> Floats:
        class_texts = task.routed.definition.class_texts()

        async def compute() -> npt.NDArray[np.float32]:
            flat_td = await expert.encode_texts([text for texts in class_texts for text in texts])
            return await self._run(self._threads, class_rows, flat_td, class_texts)

        return await task.classifier(expert.id, description, compute)

    async def _prepare(self, images: Sequence[bytes]) -> Pixels:
        """Decode and resize all images, uint8 [b, h, w, 3]."""
        limits = self.config.limits
        if not images:
            raise ServiceError("no_images", "give at least one image", field="images")
        if len(images) > limits.images:
            raise over_limit("images", len(images), limits.images, "images", "images")
        with self._timed("decode"):
            try:
                decoded = await asyncio.gather(
                    *(
                        self._run(self._threads, self._images.prepare, data, f"image {number}")
                        for number, data in enumerate(images)
                    )
                )
            except DataError as error:
                raise ServiceError("bad_image", str(error), field="images") from None
        return np.stack(decoded)

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
            cosines_il=dict(sorted(gathered.answers.items())),
            weights=weights,
            left_out=gathered.left_out,
        )

    async def _run(self, executor: Executor, function: Callable[..., _Result], *arguments: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.metrics.observe_step(step, time.monotonic() - began)


async def _both(first: Awaitable[_First], second: Awaitable[_Second]) -> tuple[_First, _Second]:
    """Side by side; where one fails the other is given up."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
