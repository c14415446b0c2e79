"""Batches of a run's samples, and the loader that prepares them in advance.

The training set and the seed determine one sequence of samples (`mode_ray.pairs.order`). A global batch is a slice of
it, and each rank gets a slice of the batch. The number of samples seen is therefore the whole state of the loader, and
a run can resume with another number of workers.
"""

import hashlib
import logging
import math
import multiprocessing
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mode_ray.config.captions import CaptionsConfig
from mode_ray.config.run import RunConfig
from mode_ray.config.train import TrainPlacement
from mode_ray.errors import DataError, UsageError
from mode_ray.models.clip import ClipModel
from mode_ray.models.crops import TrainTransform
from mode_ray.models.fast_tokens import fast_tokenizer
from mode_ray.models.tokens import CachedTokenizer
from mode_ray.pairs.images import decode_pixels
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.order import PairOrder, SampleOrder
from mode_ray.pairs.reader import Pair, PairReader, caption_id
from mode_ray.train.feature_data import FeatureDataset
from mode_ray.train.source import read_block_pairs
from mode_ray.train.step.batch import TextPreparation, TrainBatch
from mode_ray.train.step.rank import Rank
from mode_ray.util.read_ahead import read_ahead
from mode_ray.util.threads import limited_threads

_PREFETCHED_BATCHES = 4  # by each loader process, at most
_BATCHES_AHEAD = 3  # by the loader thread, at most
_FEWEST_FOR_A_GPU = 2
_LEDGER_BITS = 63
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the file system of Linux where loader processes leave their batches
_TOKEN_BYTES = 8

_logger = logging.getLogger(__name__)


class PairDataset:
    """Reads, decodes and tokenizes the samples at given positions of the sequence.

    Args:
        index: The training set.
        config: Limits, images, and the order of samples.
        clip: Tokenizer and crops.
        seed: Seed of order and crops.
        captions: Names of captions and images in the index's shards; by default the config's.
        prepare: Groups the captions for the model (`TrainLoop.prepare_texts`); by default they remain tokens.
    """

    def __init__(
        self,
        index: PairIndex,
        config: RunConfig,
        clip: ClipModel,
        seed: int,
        captions: CaptionsConfig | None = None,
        prepare: TextPreparation | None = None,
    ) -> None:
        self._reader = PairReader(index, captions or config.captions)
        self._order: PairOrder = SampleOrder(len(index), seed, read_block_pairs(config))
        self._max_pixels = config.limits.max_image_pixels
        self._images = config.images
        self._transform = TrainTransform.of(clip.train_transform)
        self._tokenizer = CachedTokenizer(fast_tokenizer(clip.tokenizer))
        self._seed = seed
        self._prepare = prepare
        self._context = int(self._tokenizer([""]).shape[1])

    def in_order(self, order: PairOrder) -> Self:
        """This data set, with another order of its samples."""
        self._order = order
        return self

    @property
    def sample_bytes(self) -> int:
        """Memory of one sample of a batch."""
        height, width = self._transform.size
        return 3 * height * width + _TOKEN_BYTES * (self._context + 2)

    def __getitem__(self, positions: Sequence[int]) -> TrainBatch:
        """The samples at these positions, as one batch."""
        return self._decode(positions, self._read(positions))

    def batches(self, positions: Iterable[Sequence[int]]) -> Iterator[TrainBatch]:
        """Batches in order. A thread reads the pairs of the next batch while this one is decoded."""
        for chosen, pairs in read_ahead(lambda chosen: (chosen, self._read(chosen)), positions, ahead=1):
            yield self._decode(chosen, pairs)

    def _read(self, positions: Sequence[int]) -> list[Pair]:
        return self._reader.read(self._order.pairs_at(positions))

    def _decode(self, positions: Sequence[int], pairs: Sequence[Pair]) -> TrainBatch:
        images = _empty_pixels((len(pairs), 3, *self._transform.size))
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
        tokens = self._tokenizer(captions)
        return TrainBatch(
            images=images,
            texts=tokens if self._prepare is None else self._prepare(tokens),
            caption_ids=torch.tensor([caption_id(caption) for caption in captions]),
            bad_images=tuple(bad),
            ledger=ledger % 2**_LEDGER_BITS,
        )


def _empty_pixels(shape: tuple[int, ...]) -> torch.Tensor:
    """Memory for a batch's pixels; in a loader process it is shared, so that sending the batch copies nothing."""
    pixels = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is not None:
        # As torch's own `default_collate` does.
        storage: Any = pixels._typed_storage()  # type: ignore[no-untyped-call]
        pixels = pixels.new(storage._new_shared(math.prod(shape)))
    return pixels.resize_(shape)


def _ledger_entry(position: int, pair: Pair) -> int:
    content = f"{position} {zlib.crc32(pair.image)} {zlib.crc32(pair.caption.encode())}"
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())


class _RankPositions:
    """Positions of one rank's part of every global batch; a batch sampler."""

    def __init__(self, batches: range, rank: Rank) -> None:
        self._batches = batches
        self._size = batches.step // rank.world_size
        self._offset = rank.number * self._size

    def __iter__(self) -> Iterator[range]:
        return (range(start + self._offset, start + self._offset + self._size) for start in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _LoaderProcessBatches(IterableDataset[TrainBatch]):
    """Every w-th batch, in loader process number 0 to w - 1 of w. torch takes the processes' batches in turn."""

    def __init__(self, dataset: PairDataset, positions: _RankPositions) -> None:
        self._dataset = dataset
        self._positions = positions

    def __iter__(self) -> Iterator[TrainBatch]:
        process = get_worker_info()
        number, processes = (0, 1) if process is None else (process.id, process.num_workers)
        return self._dataset.batches(islice(self._positions, number, None, processes))


def train_loader(
    dataset: PairDataset | FeatureDataset,
    batches: range,
    rank: Rank,
    placement: TrainPlacement,
    *,
    pin_memory: bool = False,
) -> Iterable[TrainBatch]:
    """One rank's part of every global batch, in order; some batches are prepared in advance.

    Without loader processes, threads of this process read and decode.

    Args:
        dataset: The samples.
        batches: Position of the first sample of each global batch; its step is the batch size.
        rank: This process.
        placement: Number of loader processes, and the memory for batches in advance.
        pin_memory: Page-lock the batches, for a GPU.

    Raises:
        UsageError: The batch size is not a multiple of the number of processes, or `/dev/shm` is too small.
    """
    if batches.step % rank.world_size:
        raise UsageError(
            f"train.batch_size={batches.step} cannot be split evenly among {rank.world_size} workers; "
            "make it a multiple of train.placement.workers_per_run"
        )
    positions = _RankPositions(batches, rank)
    batch_bytes = batches.step // rank.world_size * dataset.sample_bytes
    most = max(1, placement.read_ahead_bytes // batch_bytes)
    ahead = min(most, _BATCHES_AHEAD)
    if isinstance(dataset, FeatureDataset):  # nothing is decoded, so one thread is enough
        return _loaded_by_a_thread(dataset, positions, ahead=ahead, pin_memory=pin_memory)
    processes = _loader_processes(placement, most, batch_bytes)
    if processes == 0:
        return _loaded_by_a_thread(dataset, positions, ahead=ahead, pin_memory=pin_memory)
    # Loader processes are forked from a server without threads: a fork of Ray's worker may inherit a held lock.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    loader: DataLoader[TrainBatch] = DataLoader(
        _LoaderProcessBatches(dataset, positions),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=min(_PREFETCHED_BATCHES, most // processes),
        pin_memory=pin_memory,
        multiprocessing_context=context,
    )
    return loader


def _loaded_by_a_thread(
    dataset: PairDataset | FeatureDataset, positions: _RankPositions, *, ahead: int, pin_memory: bool
) -> Iterator[TrainBatch]:
    batches = dataset.batches(positions)
    # numpy gathers features, without torch's threads.
    is_numpy = isinstance(dataset, FeatureDataset)

    def load(_number: int) -> TrainBatch:
        # With more OpenMP threads than cores, libgomp lets the threads of the training step sleep between operations:
        # small models trained a third slower with a second team of threads here.
        with nullcontext() if is_numpy else limited_threads(1):
            loaded = next(batches)
        return loaded.pin_memory() if pin_memory else loaded

    return read_ahead(load, range(len(positions)), ahead=ahead)


def _loader_processes(placement: TrainPlacement, most_batches: int, batch_bytes: int) -> int:
    """The number of loader processes whose batches have room in memory.

    Raises:
        UsageError: Not even one batch of each fits in `/dev/shm`.
    """
    wanted = placement.loader_processes
    if placement.use_gpu and wanted < _FEWEST_FOR_A_GPU:
        _logger.warning(
            "a GPU is fed by %s, which loads a few hundred images per second: the GPU will mostly wait. Raise "
            "train.placement.cpus_per_worker and train.placement.loader_workers to the cores of a machine per GPU",
            "one loader process" if wanted else "one thread of its worker",
        )
    processes = min(wanted, most_batches)
    if processes < wanted:
        _logger.warning(
            "train.placement.read_ahead_bytes=%d has room for %d batches of %d bytes: %d of %d loader processes are "
            "started; raise it, or use more workers per run",
            *(placement.read_ahead_bytes, most_batches, batch_bytes, processes, wanted),
        )
    if processes and _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if free < processes * batch_bytes:
            raise UsageError(
                f"{_SHARED_MEMORY} has {free:,} bytes free, and {processes} loader processes need at least "
                f"{processes * batch_bytes:,} for their batches: give the container more shared memory (docker's "
                "--shm-size, or an emptyDir of medium Memory), or lower train.placement.loader_workers"
            )
    return processes
