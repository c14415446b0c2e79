"""Batches of a run's samples, and the loader that prepares them in advance.

The training set and the seed determine one sequence of samples (`mode_ray.pairs.order`). A global batch is a slice of
it, and each rank gets a slice of the batch. The number of samples seen is therefore the whole state of the loader, and
a run can resume with another number of workers.
"""

import hashlib
import multiprocessing
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mode_ray.config.captions import CaptionsConfig
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.models.clip import ClipModel
from mode_ray.models.fast_tokens import fast_tokenizer
from mode_ray.models.tokens import CachedTokenizer
from mode_ray.pairs.images import decode_pixels
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.order import SampleOrder
from mode_ray.pairs.reader import Pair, PairReader
from mode_ray.train.step.crops import TrainTransform
from mode_ray.train.step.rank import Rank
from mode_ray.util.read_ahead import read_ahead
from mode_ray.util.threads import limited_threads

_PREFETCHED_BATCHES = 4  # by each loader process
_BATCHES_AHEAD = 3  # by the loader thread
_LEDGER_BITS = 63


@dataclass(frozen=True)
class TrainBatch:
    """One rank's part of a global batch.

    Attributes:
        images: float32 [b, 3, h, w].
        texts: int64 [b, context].
        caption_ids: int64 [b]; equal for equal captions only (except with probability 2^-64).
        bad_images: Error message of every image that could not be decoded; another pair of the batch replaces it.
        ledger: Sum, modulo 2^63, of a hash of each sample's image, caption and position in the run. Two runs with
            equal sums over batches and ranks saw the same samples at the same positions.
    """

    images: torch.Tensor
    texts: torch.Tensor
    caption_ids: torch.Tensor
    bad_images: tuple[str, ...] = ()
    ledger: int = 0

    def to(self, device: torch.device) -> "TrainBatch":
        """Copy the tensors to a device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            texts=self.texts.to(device, non_blocking=True),
            caption_ids=self.caption_ids.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "TrainBatch":
        """Page-lock the tensors; the loader calls this if there is a GPU."""
        return replace(self, images=self.images.pin_memory(), texts=self.texts.pin_memory())


class PairDataset(Dataset[TrainBatch]):
    """Reads, decodes and tokenizes the samples at given positions of the sequence.

    `captions` gives the names of captions and images in the index's shards; the default is the config's.
    """

    def __init__(
        self, index: PairIndex, config: RunConfig, clip: ClipModel, seed: int, captions: CaptionsConfig | None = None
    ) -> None:
        self._reader = PairReader(index, captions or config.captions)
        self._order = SampleOrder(len(index), seed, config.train.data.block_pairs)
        self._max_pixels = config.limits.max_image_pixels
        self._images = config.images
        self._transform = TrainTransform.of(clip.train_transform)
        self._tokenizer = CachedTokenizer(fast_tokenizer(clip.tokenizer))
        self._seed = seed

    def __getitem__(self, positions: list[int]) -> TrainBatch:
        """The samples at these positions, as one batch."""
        pairs = self._reader.read(self._order.pairs_at(positions))
        images = torch.empty((len(pairs), 3, *self._transform.size))
        decoded: list[str] = []
        bad = []
        for pair, drawn in zip(pairs, self._transform.draw(self._seed, positions), strict=True):
            try:
                pixels_hw3 = decode_pixels(pair.encoded(), self._max_pixels, pair.place, self._images)
            except DataError as error:
                bad.append(str(error))
            else:
                images[len(decoded)] = self._transform.crop(torch.from_numpy(pixels_hw3).permute(2, 0, 1), drawn)
                decoded.append(pair.caption)
        if not decoded:
            raise DataError(f"no image of a whole batch can be decoded; the first: {bad[0]}")
        # Every rank must contribute the same number of samples, so decoded images replace the bad ones.
        for place in range(len(decoded), len(pairs)):
            images[place] = images[place % len(decoded)]
        captions = [decoded[place % len(decoded)] for place in range(len(pairs))]
        ledger = sum(_ledger_entry(position, pair) for position, pair in zip(positions, pairs, strict=True))
        return TrainBatch(
            images=self._transform.normalised_(images),
            texts=self._tokenizer(captions),
            caption_ids=torch.tensor([_caption_id(caption) for caption in captions]),
            bad_images=tuple(bad),
            ledger=ledger % 2**_LEDGER_BITS,
        )


def _caption_id(caption: str) -> int:
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), signed=True)


def _ledger_entry(position: int, pair: Pair) -> int:
    content = f"{position} {zlib.crc32(pair.image)} {zlib.crc32(pair.caption.encode())}"
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())


class _RankPositions:
    """Positions of one rank's part of every global batch; a batch sampler."""

    def __init__(self, batches: range, rank: Rank) -> None:
        self._batches = batches
        self._size = batches.step // rank.world_size
        self._offset = rank.number * self._size

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start + self._offset, start + self._offset + self._size)) for start in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def train_loader(dataset: PairDataset, batches: range, rank: Rank, workers: int) -> Iterable[TrainBatch]:
    """One rank's part of every global batch, in order; some batches are prepared in advance.

    Args:
        dataset: The samples.
        batches: Position of the first sample of each global batch; its step is the batch size.
        rank: This process.
        workers: Loader processes; with 0 a thread of this process loads.

    Raises:
        UsageError: The batch size is not a multiple of the number of processes.
    """
    if batches.step % rank.world_size:
        raise UsageError(
            f"train.batch_size={batches.step} cannot be split evenly among {rank.world_size} workers; "
            "make it a multiple of train.placement.workers_per_run"
        )
    positions: Any = _RankPositions(batches, rank)
    pinned = torch.cuda.is_available()

    def load(batch: list[int]) -> TrainBatch:
        # With more OpenMP threads than cores, libgomp lets the threads of the training step sleep between operations:
        # small models trained a third slower with a second team of threads here.
        with limited_threads(1):
            loaded = dataset[batch]
        return loaded.pin_memory() if pinned else loaded

    if workers == 0:
        return read_ahead(load, positions, ahead=_BATCHES_AHEAD)
    # Loader processes are forked from a server without threads: a fork of Ray's worker may inherit a held lock.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # batch_size=None: the dataset gets the whole list of a batch, so that it can read the batch shard by shard.
    loader: DataLoader[TrainBatch] = DataLoader(
        dataset,
        sampler=positions,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCHED_BATCHES,
        pin_memory=pinned,
        multiprocessing_context=context,
    )
    return loader


LoaderFactory = Callable[[int], Iterable[TrainBatch]]
