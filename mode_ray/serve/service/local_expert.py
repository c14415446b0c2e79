"""An expert in this process: its model runs in a thread, on batches of images of many requests.

Requests that arrive during a batch form the next batch: batches grow with the load, and a single request does not wait
for others. Batches of images and of texts alternate. A request that is larger than a batch is encoded in several, in
turn with the other requests, so that it does not delay them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from mode_ray.config.serve import ServeConfig
from mode_ray.models.encode import Expert
from mode_ray.serve.service.errors import where_it_failed
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertDescription, ExpertUnavailable
from mode_ray.serve.service.metrics import ServeMetrics
from mode_ray.serve.service.turns import Turns

_logger = logging.getLogger(__name__)

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
_Input = TypeVar("_Input", Images, Sequence[str])


@dataclass(eq=False)
class _Job(Generic[_Input]):
    """The images or texts of one request, and the embeddings of the first ones."""

    inputs: _Input
    answer: "asyncio.Future[Embeddings]"
    done: list[Embeddings] = field(default_factory=list)

    def next(self, most: int) -> _Input:
        """The first inputs that are not encoded yet."""
        start = sum(map(len, self.done))
        return self.inputs[start : start + most]

    def take(self, rows_bd: Embeddings) -> bool:
        """Add embeddings; returns whether these were the last ones, and then answers."""
        self.done.append(rows_bd)
        if sum(map(len, self.done)) < len(self.inputs):
            return False
        if not self.answer.done():
            self.answer.set_result(self.done[0] if len(self.done) == 1 else np.concatenate(self.done))
        return True


class LocalExpert:
    """An `ExpertClient`. All methods but `close` must be called from one event loop.

    Args:
        expert: Its id.
        model: The model; it must not be used elsewhere.
        config: Batch size, wait and queue.
        metrics: Records the size of every batch.
        executor: Runs the model; several experts may share one. By default the expert has a thread of its own.
    """

    def __init__(
        self,
        expert: int,
        model: Expert,
        config: ServeConfig,
        metrics: ServeMetrics,
        executor: Executor | None = None,
    ) -> None:
        self.id = expert
        self._model: Expert | None = model
        self._config = config
        self._metrics = metrics
        self._owns_executor = executor is None
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix=f"expert-{expert}")
        self._images: deque[_Job[Images]] = deque()
        self._texts: deque[_Job[Sequence[str]]] = deque()
        self._turns = Turns()
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
        """See `ExpertClient`."""
        self._open_model()
        return self._description

    async def encode_images(self, images_bhw3: Images) -> Embeddings:
        """See `ExpertClient`."""
        return await self._queued(self._images, images_bhw3)

    async def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """See `ExpertClient`."""
        if not texts:
            return np.empty((0, self._description.dimension), np.float32)
        return await self._queued(self._texts, texts)

    def close(self) -> None:
        """Stop the thread and release the model, from any thread; waiting calls fail with ExpertUnavailable."""
        # A closed expert may stay referenced, see `EnsembleService.close`; its model must not.
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

    async def _queued(self, queue: deque[_Job[_Input]], inputs: _Input) -> Embeddings:
        self._open_model()
        if len(queue) >= self._config.max_queued_requests:
            raise ExpertBusy(f"expert {self.id} has {len(queue)} requests waiting")
        self._loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done():
            self._arrived = asyncio.Event()  # the previous one belongs to the event loop of the previous worker
            self._worker = self._loop.create_task(self._work(), name=f"expert-{self.id}")
        job = _Job(inputs, self._loop.create_future())
        queue.append(job)
        self._arrived.set()
        # Cancelling the caller cancels the future, and the next batch leaves the job out.
        return await job.answer

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
        for answer in [job.answer for job in self._images] + [job.answer for job in self._texts]:
            _fail(answer, ExpertUnavailable(f"expert {self.id} is closed"))
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
        pieces = [job.next(self._config.max_batch_size) for job in batch]
        try:
            rows_bd = await self._in_thread(self._encode_batch, pieces)
        except Exception as error:  # noqa: BLE001  (any error of the model is an error of these requests)
            for job in batch:
                self._give_up(job.answer, error)
            return
        ends = np.cumsum([len(piece) for piece in pieces])
        for job, rows in zip(batch, np.split(rows_bd, ends[:-1]), strict=True):
            if not job.take(rows):
                self._images.append(job)

    async def _run_texts(self) -> None:
        while self._texts and self._texts[0].answer.done():
            self._texts.popleft()
        if not self._texts:
            return
        job = self._texts.popleft()
        piece = job.next(self._turns.size)
        try:
            rows_ld = await self._in_thread(self._turns.encode, self._open_model().encode_texts, piece)
        except Exception as error:  # noqa: BLE001  (as above)
            self._give_up(job.answer, error)
            return
        if not job.take(rows_ld):
            self._texts.append(job)

    def _give_up(self, answer: "asyncio.Future[Embeddings]", error: Exception) -> None:
        _logger.error("expert %d failed: %s", self.id, where_it_failed(error))
        _fail(answer, ExpertUnavailable(f"expert {self.id}: {type(error).__name__}"))

    def _next_batch(self) -> list[_Job[Images]]:
        """As many whole requests as fit into a batch, or a part of one that is larger."""
        batch: list[_Job[Images]] = []
        size = 0
        while self._images:
            job = self._images[0]
            needed = len(job.next(self._config.max_batch_size))
            if batch and size + needed > self._config.max_batch_size:
                break
            self._images.popleft()
            if not job.answer.done():
                batch.append(job)
                size += needed
        return batch

    def _encode_batch(self, pieces: Sequence[Images]) -> Embeddings:
        images_bhw3 = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        rows_bd = self._open_model().encode_pixels(images_bhw3)
        self._metrics.batch_size(len(images_bhw3), expert=str(self.id))
        return rows_bd

    async def _in_thread(self, function: Callable[..., Embeddings], *arguments: object) -> Embeddings:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


def _fail(answer: "asyncio.Future[Embeddings]", error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
