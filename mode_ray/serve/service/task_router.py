"""From the task of a request to its weights: the caption encoder in its own thread, the task cache, stored tasks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mode_ray.config.serve import ServeConfig
from mode_ray.models.context import TextContext
from mode_ray.routing.router import Router
from mode_ray.serve.service.errors import ServiceError, overloaded, unavailable
from mode_ray.serve.service.metrics import ServeMetrics
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_cache import CachedTask, TaskCache
from mode_ray.serve.service.task_definition import TaskDefinition, check_definition
from mode_ray.serve.service.task_routing import RoutedTask, route, weights_of_each
from mode_ray.serve.service.task_store import TaskStore
from mode_ray.serve.service.turns import Rows, Turns

_TEXTS_CHECKED_AT_ONCE = 256

Floats = npt.NDArray[np.floating]
_Result = TypeVar("_Result")


class TaskRouter:
    """Routes tasks and texts. All methods but `close` must be called from one event loop.

    The caption encoder works on slices of texts, so that requests take turns. A request that is cancelled leaves the
    rest of its texts.

    Args:
        served: The run.
        config: Limits, caches.
        metrics: Metrics of this process.

    Raises:
        UsageError: The caption encoder cannot be found.
        DataError: The clustering was made with another encoder.
    """

    def __init__(self, served: ServedRun, config: ServeConfig, metrics: ServeMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._router: Router | None = Router(served.load_encoder(), served.clustering, served.n, served.config.routing)
        self._context = TextContext.of_model(next(iter(served.experts.values())))
        self._store = TaskStore(served.task_directory, config.max_stored_tasks)
        self._cache = TaskCache(config.cached_tasks, config.cached_task_bytes)
        self._turns = Turns()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="caption-encoder")
        self._waiting = 0

    def close(self) -> None:
        """Stop the thread; release the caption encoder and the cached tasks; running requests fail."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._router = None
        # A new one: running requests may be iterating over the old one.
        self._cache = TaskCache(self._config.cached_tasks, self._config.cached_task_bytes)

    async def task(self, task: TaskDefinition | str) -> tuple[CachedTask, RoutedTask]:
        """A task, by its definition or its id, with its weights.

        Raises:
            ServiceError: There is no such task, it exceeds a limit, or it cannot be routed.
        """
        found = self._cache.get(task if isinstance(task, str) else task.id)
        routed = None if found is None else found.routed.result
        self._metrics.task_cache(1.0, result="miss" if routed is None else "hit")
        if found is not None and routed is not None:
            return found, routed
        definition = task if isinstance(task, TaskDefinition) else await self._stored(task)
        check_definition(definition, self._config.limits)
        if self._waiting >= self._config.max_queued_requests:
            raise overloaded("too many new tasks are waiting for the caption encoder")
        cached = self._cache.put(definition)
        self._waiting += 1
        try:
            return cached, await self._routed(cached)
        finally:
            self._waiting -= 1

    async def register(self, definition: TaskDefinition) -> RoutedTask:
        """Route a task and store it, so that every router of the run knows its id.

        Raises:
            ServiceError: As `task`, or it cannot be stored.
        """
        _, routed = await self.task(definition)
        try:
            await asyncio.to_thread(self._store.save, definition)
        except OSError:
            raise unavailable("the task cannot be stored at present") from None
        return routed

    @contextmanager
    def while_needed(self, definition: TaskDefinition) -> Iterator[CachedTask]:
        """A task that leaves the cache when the block succeeds, unless it was there before.

        What was computed in a block that fails, for example because it takes too long, stays for the next request.

        Raises:
            ServiceError: It exceeds a limit.
        """
        check_definition(definition, self._config.limits)
        known = self._cache.get(definition.id)
        yield known or self._cache.put(definition)
        if known is None:
            self._cache.drop(definition.id)

    async def weights_of_each(self, cached: CachedTask) -> Floats:
        """Weights of every class as a task of its own, by its text in the first template, [l, experts].

        Raises:
            ServiceError: The caption encoder knows no word of any of them.
        """
        definition = cached.definition
        texts = [texts[0] for texts in definition.class_texts()]

        async def finish(texts_ld: Rows) -> Floats:
            return await self._in_thread(weights_of_each, self._open_router(), texts, definition.rule, texts_ld)

        with self._timed():
            return await cached.weights_of_each.get(texts, self._encode, finish)

    async def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is longer than the context of the experts, which ignore its end."""
        found: list[bool] = []
        for start in range(0, len(texts), _TEXTS_CHECKED_AT_ONCE):
            found += await self._in_thread(self._context.are_cut, texts[start : start + _TEXTS_CHECKED_AT_ONCE])
        return found

    def shrink_cache(self) -> None:
        """Drop the tasks that do not fit into the cache any more, since class embeddings were added."""
        self._cache.shrink()

    def _open_router(self) -> Router:
        router = self._router
        if router is None:
            raise unavailable("the service is closed")
        return router

    async def _routed(self, cached: CachedTask) -> RoutedTask:
        texts = [text for texts in cached.definition.class_texts() for text in texts]

        async def finish(flat_td: Rows) -> RoutedTask:
            cut = await self.truncated(texts)
            return await self._in_thread(route, self._open_router(), cached.definition, flat_td, cut)

        with self._timed():
            return await cached.routed.get(texts, self._encode, finish)

    async def _encode(self, texts: Sequence[str]) -> AsyncIterator[Rows]:
        """The caption encoder's embeddings, slice by slice."""
        start = 0
        while start < len(texts):
            piece = texts[start : start + self._turns.size]
            start += len(piece)
            yield await self._in_thread(self._turns.encode, self._open_router().encode, piece)

    async def _stored(self, task_id: str) -> TaskDefinition:
        try:
            stored = await asyncio.to_thread(self._store.load, task_id)
        except OSError:
            raise unavailable("the stored tasks cannot be read at present") from None
        if stored is None:
            raise ServiceError("unknown_task", "there is no task with this id: register it first", 404, field="task")
        return stored

    async def _in_thread(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._metrics.step_seconds(time.monotonic() - began, step="route")
