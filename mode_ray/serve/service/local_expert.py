"""An expert in this process: its model in a thread, images of many requests batched together.

While a batch runs, what comes in the meantime waits and makes the next batch, so that batches grow with the load and
a single request waits for nobody. Texts take turns with images: a large task does not hold up those of others.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mode_ray.config.serve import ServeConfig
from mode_ray.models.encode import Expert
from mode_ray.serve.service.errors import where_it_failed
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertDescription, ExpertUnavailable
from mode_ray.serve.service.observer import Observer

_TEXTS_AT_ONCE = 64

_logger = logging.getLogger(__name__)

Embeddings = npt.NDArray[np.float32]
_Input = TypeVar("_Input")


@dataclass(eq=False)
class _Images:
    """Images of one request."""

    images_bhw3: npt.NDArray[np.uint8]
    answer: "asyncio.Future[Embeddings]"


@dataclass(eq=False)
class _Texts:
    """Texts of one request, and the embeddings of those that are done."""

    texts: Sequence[str]
    answer: "asyncio.Future[Embeddings]"
    done: list[Embeddings]

    @property
    def position(self) -> int:
        return sum(map(len, self.done))


class LocalExpert:
    """See `ExpertClient`. All methods but `close` belong to one event loop.

    Args:
        expert: Its id.
        model: The model; nobody else uses it.
        config: Batch size, wait and queue.
        observer: Told the size of every batch.
        executor: Runs the model; several experts that share one take turns. By default a thread of its own.
    """

    def __init__(
        self,
        expert: int,
        model: Expert,
        config: ServeConfig,
        observer: Observer,
        executor: Executor | None = None,
    ) -> None:
        self.id = expert
        self._model: Expert | None = model
        self._config = config
        self._observer = observer
        self._owns_executor = executor is None
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix=f"expert-{expert}")
        self._images: deque[_Images] = deque()
        self._texts: deque[_Texts] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._description = ExpertDescription(
            logit_scale=model.logit_scale,
            dimension=model.dimension,
            image_size=model.image_size,
            source=str(model.folder),
        )

    async def describe(self) -> ExpertDescription:
        """What the expert is."""
        self._open_model()
        return self._description

    async def encode_images(self, images_bhw3: npt.NDArray[np.uint8]) -> Embeddings:
        """Unit-norm embeddings of resized images, float32 [b, d].

        Raises:
            ExpertUnavailable: It was closed.
            ExpertBusy: Its queue is full.
        """
        job = _Images(images_bhw3, self._begin(len(self._images)))
        self._images.append(job)
        return await self._answered(job)

    async def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Unit-norm embeddings of texts, float32 [l, d]. Errors as of `encode_images`."""
        if not texts:
            return np.empty((0, self._description.dimension), np.float32)
        job = _Texts(texts, self._begin(len(self._texts)), [])
        self._texts.append(job)
        return await self._answered(job)

    def close(self) -> None:
        """End the thread and release the model, from any thread; calls that wait fail with ExpertUnavailable."""
        # A closed expert may stay referenced for long, see `EnsembleService.close`; its model must not.
        self._model = None
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)
        if self._owns_executor:
            self._executor.shutdown(wait=False)

    def _open_model(self) -> Expert:
        model = self._model
        if model is None:
            raise ExpertUnavailable(f"expert {self.id} is closed")
        return model

    def _begin(self, waiting: int) -> "asyncio.Future[Embeddings]":
        self._open_model()
        if waiting >= self._config.max_queued_requests:
            raise ExpertBusy(f"expert {self.id} has {waiting} requests waiting")
        self._loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done():
            self._arrived = asyncio.Event()  # the one before belongs to the event loop of the worker before
            self._worker = self._loop.create_task(self._work(), name=f"expert-{self.id}")
        return self._loop.create_future()

    async def _answered(self, job: _Images | _Texts) -> Embeddings:
        self._arrived.set()
        # A caller that is cancelled cancels the future: a batch not yet begun then leaves the job out.
        return await job.answer

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
        waiting: list[_Images | _Texts] = [*self._images, *self._texts]
        for job in waiting:
            _fail(job, ExpertUnavailable(f"expert {self.id} is closed"))
        self._images.clear()
        self._texts.clear()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self._images and self._config.batch_wait_seconds:
                await asyncio.sleep(self._config.batch_wait_seconds)
            while self._images or self._texts:
                await self._run_images()
                await self._run_texts()

    async def _run_images(self) -> None:
        batch = self._next_batch()
        if not batch:
            return
        images_bhw3 = batch[0].images_bhw3 if len(batch) == 1 else np.concatenate([job.images_bhw3 for job in batch])
        try:
            rows_bd = await self._in_thread(self._encode_batches, images_bhw3)
        except Exception as error:  # noqa: BLE001  (whatever the model raises belongs to these callers)
            for job in batch:
                self._give_up(job, error)
            return
        ends = np.cumsum([len(job.images_bhw3) for job in batch])
        for job, rows in zip(batch, np.split(rows_bd, ends[:-1]), strict=True):
            if not job.answer.done():
                job.answer.set_result(rows)

    async def _run_texts(self) -> None:
        while self._texts and self._texts[0].answer.done():
            self._texts.popleft()
        if not self._texts:
            return
        job = self._texts.popleft()
        piece = job.texts[job.position : job.position + _TEXTS_AT_ONCE]
        try:
            job.done.append(await self._in_thread(self._open_model().encode_texts, piece))
        except Exception as error:  # noqa: BLE001  (as above)
            self._give_up(job, error)
            return
        if job.position < len(job.texts):
            self._texts.append(job)
        elif not job.answer.done():
            job.answer.set_result(np.concatenate(job.done))

    def _give_up(self, job: _Images | _Texts, error: Exception) -> None:
        _logger.error("expert %d failed: %s", self.id, where_it_failed(error))
        _fail(job, ExpertUnavailable(f"expert {self.id}: {type(error).__name__}"))

    def _next_batch(self) -> list[_Images]:
        """Whole requests, as many as fit; a larger one goes alone, in several passes."""
        batch: list[_Images] = []
        size = 0
        while self._images:
            job = self._images[0]
            if batch and size + len(job.images_bhw3) > self._config.max_batch_size:
                break
            self._images.popleft()
            if not job.answer.done():
                batch.append(job)
                size += len(job.images_bhw3)
        return batch

    def _encode_batches(self, images_bhw3: npt.NDArray[np.uint8]) -> Embeddings:
        model = self._open_model()
        parts = []
        for start in range(0, len(images_bhw3), self._config.max_batch_size):
            piece = images_bhw3[start : start + self._config.max_batch_size]
            parts.append(model.encode_pixels(piece))
            self._observer.observe_batch(self.id, len(piece))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    async def _in_thread(self, function: Callable[[_Input], Embeddings], value: _Input) -> Embeddings:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, value)


def _fail(job: _Images | _Texts, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
