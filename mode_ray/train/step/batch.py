"""One rank's part of a global batch, from the loader to the device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from mode_ray.train.step.text_groups import GroupedTexts, TextGrouping

Texts = torch.Tensor | GroupedTexts
"""The captions of a micro-batch: int64 [b, context], or in groups of similar length."""


@dataclass(frozen=True)
class TrainBatch:
    """One rank's part of a global batch.

    Attributes:
        images: Pixels uint8 [b, 3, h, w], which the training device normalises; or normalised floats.
        texts: int64 [b, context], or the output of `TextPreparation`: the captions of each micro-batch.
        caption_ids: int64 [b]; equal for equal captions only (except with probability 2^-64).
        bad_images: Error message of every image that could not be decoded; another pair of the batch replaces it.
        ledger: Sum, modulo 2^63, of a hash of each sample's image, caption and position in the run. Two runs with
            equal sums over batches and ranks saw the same samples at the same positions.
    """

    images: torch.Tensor
    texts: torch.Tensor | tuple[Texts, ...]
    caption_ids: torch.Tensor
    bad_images: tuple[str, ...] = ()
    ledger: int = 0

    def to(self, device: torch.device) -> "TrainBatch":
        """Copy the tensors to a device; from pinned memory the copies are asynchronous."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "TrainBatch":
        """Page-lock the tensors. torch's `DataLoader` calls this."""
        return self._with(torch.Tensor.pin_memory)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors of the batch."""
        yield self.images
        for texts in self.texts if isinstance(self.texts, tuple) else (self.texts,):
            yield from texts.tensors if isinstance(texts, GroupedTexts) else (texts,)
        yield self.caption_ids

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "TrainBatch":
        if isinstance(self.texts, tuple):
            texts: torch.Tensor | tuple[Texts, ...] = tuple(_changed(part, change) for part in self.texts)
        else:
            texts = change(self.texts)
        return replace(self, images=change(self.images), texts=texts, caption_ids=change(self.caption_ids))


def _changed(texts: Texts, change: Callable[[torch.Tensor], torch.Tensor]) -> Texts:
    return texts.changed(change) if isinstance(texts, GroupedTexts) else change(texts)


@dataclass(frozen=True)
class TextPreparation:
    """Splits the captions of a batch into micro-batches, and groups each; the loader does this for the model.

    Attributes:
        grouping: The groups of a causal text tower; None for other towers.
        micro_batch_size: Captions per micro-batch; None for the whole batch.
    """

    grouping: TextGrouping | None
    micro_batch_size: int | None

    def __call__(self, texts_bt: torch.Tensor) -> tuple[Texts, ...]:
        """The captions of each micro-batch, from tokens int64 [b, context] in main memory."""
        parts = torch.split(texts_bt, self.micro_batch_size or len(texts_bt))
        return parts if self.grouping is None else tuple(map(self.grouping.group, parts))


LoaderFactory = Callable[[int], Iterable[TrainBatch]]
"""Makes a loader whose first batch begins at the given sample."""


def batches_on_device(batches: Iterable[TrainBatch], device: torch.device) -> Iterator[TrainBatch]:
    """The batches on a device. For a GPU, each is copied during the step on the batch before it.

    On the CPU the batches are passed on as they are.
    """
    return _copied_ahead(batches, device) if device.type == "cuda" else iter(batches)


def _copied_ahead(batches: Iterable[TrainBatch], device: torch.device) -> Iterator[TrainBatch]:
    """Copy on a stream of its own, one batch ahead, so that no copy delays the step's kernels."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: TrainBatch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.to(device)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in copied.tensors():
            # Without this, the allocator could reuse the memory while kernels of the step still read it.
            tensor.record_stream(torch.cuda.current_stream(device))
        waiting = copied
    if waiting is not None:
        yield waiting
