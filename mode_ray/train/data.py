"""The order of samples, and the loader that follows it.

A run's samples are one sequence that depends on nothing but the training set and the seed: position p lies in epoch
p // N, at place p % N of that epoch's permutation. A global batch is a slice of it, a rank's part a slice of that. The
number of samples seen is therefore the whole state of the loader, and a run may go on with another number of workers.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mode_ray.config import RunConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.expert_data import PairIndex
from mode_ray.images import decode_image
from mode_ray.pair_reader import Pair, PairReader
from mode_ray.train.model import ClipModel

_PREFETCHED_BATCHES = 4
_LEDGER_BITS = 63


class SampleOrder:
    """The sequence of a run's samples.

    Args:
        pairs: N, size of the training set.
        seed: Of the permutations.
    """

    def __init__(self, pairs: int, seed: int) -> None:
        self._pairs = pairs
        self._seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def pair_at(self, position: int) -> int:
        """Which pair stands at a position of the sequence."""
        epoch, place = divmod(position, self._pairs)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng((self._seed, epoch)).permutation(self._pairs)
            self._epoch = epoch
        return int(self._permutation[place])


@dataclass(frozen=True)
class TrainBatch:
    """One rank's part of a global batch.

    Attributes:
        images: float32 [b, 3, h, w].
        texts: int64 [b, context].
        caption_ids: int64 [b]; equal for equal captions, and (but for a chance of 2^-64) for no others.
        bad_images: Reason and place of every image that could not be decoded; another pair of the batch stands in.
        ledger: Sum, modulo 2^63, of a number that each sample's image, caption and position in the run determine.
            Sums over batches and ranks tell whether two runs saw the same samples at the same places.
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
        """Page-lock the tensors; the loader calls this where there is a GPU."""
        return replace(self, images=self.images.pin_memory(), texts=self.texts.pin_memory())


class PairDataset(Dataset[TrainBatch]):
    """Reads, decodes and tokenises the samples at given positions of the sequence.

    Args:
        index: The training set.
        config: How its shards are read, and the largest image.
        clip: Transforms and tokenizer.
        seed: Of the order and of the random crops.
    """

    def __init__(self, index: PairIndex, config: RunConfig, clip: ClipModel, seed: int) -> None:
        self._reader = PairReader(index, config.captions)
        self._order = SampleOrder(len(index), seed)
        self._max_pixels = config.limits.max_image_pixels
        self._transform = clip.train_transform
        self._tokenizer = clip.tokenizer
        self._seed = seed

    def __getitem__(self, positions: list[int]) -> TrainBatch:
        """The samples at these positions, as one batch."""
        pairs = self._reader.read([self._order.pair_at(position) for position in positions])
        decoded: list[tuple[torch.Tensor, str]] = []
        bad = []
        with torch.random.fork_rng(devices=[]):
            for position, pair in zip(positions, pairs, strict=True):
                # Seeded by position, so that a crop does not depend on worker, rank or restart.
                # The generator's own method: torch.manual_seed also visits every device and costs a millisecond.
                torch.default_generator.manual_seed(_crop_seed(self._seed, position))
                try:
                    decoded.append((self._image(pair), pair.caption))
                except DataError as error:
                    bad.append(str(error))
        if not decoded:
            raise DataError(f"no image of a whole batch can be decoded; the first: {bad[0]}")
        # Ranks must contribute equally many samples, so decoded ones take the places of the bad ones.
        chosen = [decoded[place % len(decoded)] for place in range(len(positions))]
        images = torch.stack([image for image, _ in chosen])
        captions = [caption for _, caption in chosen]
        caption_ids = torch.tensor([_caption_id(caption) for caption in captions])
        ledger = sum(_ledger_entry(position, pair) for position, pair in zip(positions, pairs, strict=True))
        return TrainBatch(images, self._tokenizer(captions), caption_ids, tuple(bad), ledger % 2**_LEDGER_BITS)

    def _image(self, pair: Pair) -> torch.Tensor:
        return self._transform(decode_image(pair.image, self._max_pixels, pair.place))


def _crop_seed(seed: int, position: int) -> int:
    """32 bits, since torch's CPU generator uses no more; a multiplicative hash keeps the runs' seeds apart."""
    return (seed * 0x9E3779B1 + position) % 2**32


def _caption_id(caption: str) -> int:
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), signed=True)


def _ledger_entry(position: int, pair: Pair) -> int:
    content = f"{position} {zlib.crc32(pair.image)} {zlib.crc32(pair.caption.encode())}"
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())


class _RankPositions:
    """Positions of one rank's part of every global batch from a sample on; a batch sampler."""

    def __init__(self, first: int, last: int, batch_size: int, rank: int, world_size: int) -> None:
        self._batches = range(first, last, batch_size)
        part = batch_size // world_size
        self._part = range(rank * part, (rank + 1) * part)

    def __iter__(self) -> Iterator[list[int]]:
        return ([start + offset for offset in self._part] for start in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def train_loader(
    dataset: PairDataset, first: int, last: int, batch_size: int, rank: int, world_size: int, workers: int
) -> DataLoader[Any]:
    """A loader over one rank's part of the samples `first` to `last`, in order.

    Args:
        dataset: The samples.
        first: Samples seen so far by the whole run.
        last: Samples after which the run ends.
        batch_size: Global batch.
        rank: Of this process.
        world_size: Number of processes.
        workers: Loader processes; 0 loads in this one.

    Raises:
        UsageError: The batch cannot be dealt evenly to the processes.
    """
    if batch_size % world_size:
        raise UsageError(
            f"train.batch_size={batch_size} cannot be dealt evenly to {world_size} workers; "
            "make it a multiple of train.placement.workers_per_run"
        )
    positions: Any = _RankPositions(first, last, batch_size, rank, world_size)
    multiprocess: dict[str, Any] = {"prefetch_factor": _PREFETCHED_BATCHES} if workers else {}
    # batch_size=None: the sampler's lists go to the dataset whole, which reads a batch shard by shard.
    return DataLoader(
        dataset,
        sampler=positions,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        **multiprocess,
    )


LoaderFactory = Callable[[int], DataLoader[Any]]
