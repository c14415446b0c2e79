"""Experts in this process: their models run in a thread, on batches of images of many requests.

Requests that arrive during a batch form the next batch: batches grow with the load, and a single request does not wait
for others. Batches of images and of texts alternate. A request that is larger than a batch is encoded in several, in
turn with the other requests, so that it does not delay them.

Experts whose image trunks are equal have one queue. The trunk runs once for images that several of them are asked for.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.config.serve import ServeConfig
from mode_ray.models.encode import Expert
from mode_ray.models.together import encode_pixels
from mode_ray.serve.service.errors import where_it_failed
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertDescription, ExpertUnavailable
from mode_ray.serve.service.metrics import ServeMetrics
from mode_ray.serve.service.text_features import TextFeatures
from mode_ray.serve.service.turns import Turns

_logger = logging.getLogger(__name__)

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
_Input = TypeVar("_Input", Images, Sequence[str])


@dataclass(eq=False)
class _Answer:
    """The embeddings of one expert for one request."""

    future: "asyncio.Future[Embeddings]"
    parts: list[Embeddings] = field(default_factory=list)


@dataclass(eq=False)
class _Job(Generic[_Input]):
    """The images or texts of one request, and the experts that are asked."""

    inputs: _Input
    answers: dict[int, _Answer]
    encoded: int = 0

    @property
    def wanted(self) -> list[int]:
        """The experts whose answers somebody waits for."""
        return [expert for expert, answer in self.answers.items() if not answer.future.done()]

    def next(self, most: int) -> _Input:
        """The first inputs that are not encoded yet."""
        return self.inputs[self.encoded : self.encoded + most]

    def take(self, count: int, rows_by_expert: Mapping[int, Embeddings]) -> bool:
        """Add embeddings; returns whether these were the last ones, and then answers."""
        self.encoded += count
        complete = self.encoded >= len(self.inputs)
        for expert in self.wanted:
            answer = self.answers[expert]
            answer.parts.append(rows_by_expert[expert])
            if complete:
                answer.future.set_result(answer.parts[0] if len(answer.parts) == 1 else np.concatenate(answer.parts))
        return complete


class LocalExperts:
    """Experts with equal image trunks, or a single one. All methods but `close` must be called from one event loop.

    Args:
        models: The models by the experts' ids; they must not be used elsewhere.
        config: Batch size, wait and queue.
        metrics: Records the size of every batch.
        executor: Runs the models; several objects may share one.

    Attributes:
        clients: An `ExpertClient` for every expert.
    """

    def __init__(
        self,
        models: Mapping[int, Expert],
        config: ServeConfig,
        metrics: ServeMetrics,
        executor: Executor,
    ) -> None:
        self._name = f"expert{'s' if len(models) > 1 else ''} {', '.join(map(str, models))}"
        self._models = dict(models)
        self._config = config
        self._metrics = metrics
        self._executor = executor
        self._images: deque[_Job[Images]] = deque()
        self._texts: deque[_Job[Sequence[str]]] = deque()
        self._text_features = TextFeatures()
        self._turns = Turns()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.clients = {expert: LocalExpert(expert, self, model) for expert, model in models.items()}

    async def encode_images(self, expert: int, images_bhw3: Images) -> Embeddings:
        """One expert's embeddings. Several experts that are asked for the same array share the trunk's pass."""
        return await self._queued(self._images, expert, images_bhw3)

    async def encode_texts(self, expert: int, texts: Sequence[str]) -> Embeddings:
        """One expert's embeddings of texts."""
        return await self._queued(self._texts, expert, texts)

    def close(self) -> None:
        """Release the models, from any thread; waiting calls fail with ExpertUnavailable."""
        # Closed experts may stay referenced, see `EnsembleService.close`; their models must not.
        self._models = {}
        self._text_features = TextFeatures()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)

    def open_model(self, expert: int) -> Expert:
        """The model of an expert.

        Raises:
            ExpertUnavailable: The experts are closed.
        """
        if expert not in self._models:
            raise ExpertUnavailable(f"expert {expert} is closed")
        return self._models[expert]

    async def _queued(self, queue: deque[_Job[_Input]], expert: int, inputs: _Input) -> Embeddings:
        self.open_model(expert)
        if sum(expert in job.answers for job in queue) >= self._config.max_queued_requests:
            raise ExpertBusy(f"expert {expert} has {len(queue)} requests waiting")
        self._loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done():
            self._arrived = asyncio.Event()  # the previous one belongs to the event loop of the previous worker
            self._worker = self._loop.create_task(self._work(), name=self._name)
        answer = _Answer(self._loop.create_future())
        same = (job for job in queue if job.inputs is inputs and not job.encoded and expert not in job.answers)
        job = next(same, None)
        if job is None:
            queue.append(_Job(inputs, {expert: answer}))
        else:
            job.answers[expert] = answer
        self._arrived.set()
        # Cancelling the caller cancels the future, and the next batch leaves the job out.
        return await answer.future

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
        for answers in [job.answers for job in self._images] + [job.answers for job in self._texts]:
            for expert, answer in answers.items():
                _fail(answer.future, ExpertUnavailable(f"expert {expert} is closed"))
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
        asked = sorted({expert for job in batch for expert in job.wanted})
        try:
            rows_by_expert = await self._in_thread(partial(self._encode_images, asked, pieces))
        except Exception as error:  # noqa: BLE001  (any error of the model is an error of these requests)
            for job in batch:
                self._give_up(job, error)
            return
        ends = np.cumsum([len(piece) for piece in pieces])
        parts = {expert: np.split(rows_bd, ends[:-1]) for expert, rows_bd in rows_by_expert.items()}
        for place, (job, piece) in enumerate(zip(batch, pieces, strict=True)):
            if not job.take(len(piece), {expert: rows[place] for expert, rows in parts.items()}):
                self._images.append(job)

    async def _run_texts(self) -> None:
        while self._texts and not self._texts[0].wanted:
            self._texts.popleft()
        if not self._texts:
            return
        job = self._texts.popleft()
        piece = job.next(self._turns.size)
        asked = job.wanted
        try:
            rows_by_expert = await self._in_thread(partial(self._encode_texts, asked, piece))
        except Exception as error:  # noqa: BLE001  (as above)
            self._give_up(job, error)
            return
        if not job.take(len(piece), rows_by_expert):
            self._texts.append(job)

    def _give_up(self, job: _Job[_Input], error: Exception) -> None:
        for expert in job.wanted:
            _logger.error("expert %d failed: %s", expert, where_it_failed(error))
            _fail(job.answers[expert].future, ExpertUnavailable(f"expert {expert}: {type(error).__name__}"))

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
            if job.wanted:
                batch.append(job)
                size += needed
        return batch

    def _encode_images(self, asked: Sequence[int], pieces: Sequence[Images]) -> dict[int, Embeddings]:
        images_bhw3 = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        rows = encode_pixels([self.open_model(expert) for expert in asked], images_bhw3)
        for expert in asked:
            self._metrics.batch_size(len(images_bhw3), expert=str(expert))
        return dict(zip(asked, rows, strict=True))

    def _encode_texts(self, asked: Sequence[int], texts: Sequence[str]) -> dict[int, Embeddings]:
        return {expert: self._texts_of(self.open_model(expert), texts) for expert in asked}

    def _texts_of(self, model: Expert, texts: Sequence[str]) -> Embeddings:
        if len(self._models) == 1:
            return self._turns.encode(model.encode_texts, texts)

        def compute(unknown: Sequence[str]) -> torch.Tensor:
            began = time.monotonic()
            features_bk = model.token_features(model.tokenizer(list(unknown)))
            self._turns.took(len(unknown), time.monotonic() - began)
            return features_bk

        return model.embed_texts(self._text_features.get(model.text_trunk, texts, compute))

    async def _in_thread(self, work: Callable[[], dict[int, Embeddings]]) -> dict[int, Embeddings]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class LocalExpert:
    """The `ExpertClient` of one of several local experts."""

    def __init__(self, expert: int, experts: LocalExperts, model: Expert) -> None:
        self.id = self._number = expert
        self._experts = experts
        self._description = ExpertDescription(
            logit_scale=model.logit_scale,
            dimension=model.dimension,
            image_size=model.image_size,
            source=str(model.folder),
        )

    async def describe(self) -> ExpertDescription:
        """See `ExpertClient`."""
        self._experts.open_model(self._number)
        return self._description

    async def encode_images(self, images_bhw3: Images) -> Embeddings:
        """See `ExpertClient`."""
        return await self._experts.encode_images(self._number, images_bhw3)

    async def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """See `ExpertClient`."""
        if not texts:
            return np.empty((0, self._description.dimension), np.float32)
        return await self._experts.encode_texts(self._number, texts)


def _fail(answer: "asyncio.Future[Embeddings]", error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
