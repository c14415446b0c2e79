"""Image embeddings of a split by all models. Every image is decoded and preprocessed once, by one worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from mode_ray.errors import DataError
from mode_ray.evaluate.measure.known_images import KnownImages
from mode_ray.evaluate.measure.measurements import load_array, save_array
from mode_ray.evaluate.measure.options import MeasureOptions
from mode_ray.evaluate.tasks.samples import Sample, Split, read_samples
from mode_ray.evaluate.tasks.task import Task
from mode_ray.evaluate.tasks.usable_samples import UsableSamples, prepared_image
from mode_ray.models.preprocess import ImageInput
from mode_ray.pairs.images import Pixels
from mode_ray.storage import Location
from mode_ray.util.read_ahead import read_ahead

Features: TypeAlias = dict[str, np.ndarray]
"""Unit rows by model, float32 [i, d]."""


@dataclass(frozen=True)
class EncodedPart:
    """The part of a split that one worker has encoded; the embeddings are stored in files.

    Attributes:
        usable: The samples of the part.
        sample_numbers: Index of the sample of every image in the whole split.
        folder: Folder with the embeddings of every model.
    """

    usable: UsableSamples
    sample_numbers: Sequence[int]
    folder: Location


def encode_split(
    task: Task, split: Split, images: KnownImages, options: MeasureOptions
) -> tuple[UsableSamples, Features]:
    """Embed the usable images of a split.

    Raises:
        DataError: A file cannot be read, or no sample is usable.
    """
    usable, _, features = _encode_share(task, split, images, options, worker=0, workers=1)
    usable.require_some()
    return usable, features


def encode_part(
    task: Task,
    split: Split,
    images: KnownImages,
    options: MeasureOptions,
    worker: int,
    folder: Location,
) -> EncodedPart:
    """Embed the share of one worker: one of every `workers_per_task` batches of samples. Others are not decoded.

    Raises:
        DataError: A file cannot be read.
    """
    workers = options.placement.workers_per_task
    usable, numbers, features = _encode_share(task, split, images, options, worker, workers)
    for number, rows_id in enumerate(features.values()):
        save_array(_features_file(folder, number), rows_id)
    return EncodedPart(usable, numbers, folder)


def merge_parts(models: Sequence[str], parts: Sequence[EncodedPart]) -> tuple[UsableSamples, Features]:
    """The result of `encode_split` from the parts of all workers; `models` are in the order of `experts`.

    Raises:
        DataError: No sample is usable.
    """
    places = [
        (number, part, image) for part, one in enumerate(parts) for image, number in enumerate(one.sample_numbers)
    ]
    # For the concatenated rows of all parts: the order of their samples.
    row_of_rank = np.argsort([number for number, _, _ in places], kind="stable")
    order = [(part, image) for _, part, image in (places[row] for row in row_of_rank)]
    usable = UsableSamples.merged([one.usable for one in parts], order)
    usable.require_some()
    filled = [one.folder for one in parts if one.sample_numbers]
    features = {
        name: np.concatenate([load_array(_features_file(folder, number)) for folder in filled])[row_of_rank]
        for number, name in enumerate(models)
    }
    return usable, features


def _features_file(folder: Location, model: int) -> Location:
    return folder / f"{model}.npy"


def _encode_share(
    task: Task,
    split: Split,
    images: KnownImages,
    options: MeasureOptions,
    worker: int,
    workers: int,
) -> tuple[UsableSamples, list[int], Features]:
    batch_size = options.placement.batch_size
    decode = partial(_decode, options.image_input(next(iter(images.experts.values())).geometry))
    usable, numbers = UsableSamples(task), list[int]()
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in images.experts}
    batch: list[Pixels] = []
    encode = partial(_encode, images, chunks)
    numbered = enumerate(read_samples(task, split))
    own = ((number, sample) for number, sample in numbered if number // batch_size % workers == worker)
    # While the models encode a batch, threads decode the next one.
    for number, sample, prepared in read_ahead(
        decode, own, ahead=batch_size, threads=options.placement.threads_per_task
    ):
        pixels_hw3 = usable.take(sample, prepared)
        if pixels_hw3 is not None:
            numbers.append(number)
            batch.append(pixels_hw3)
        if len(batch) == batch_size:
            encode(batch)
            batch = []
    encode(batch)
    nothing = np.empty((0, 0), np.float32)
    return usable, numbers, {name: np.concatenate(parts) if parts else nothing for name, parts in chunks.items()}


def _decode(inputs: ImageInput, numbered: tuple[int, Sample]) -> tuple[int, Sample, Pixels | DataError | None]:
    number, sample = numbered
    return number, sample, prepared_image(sample, inputs.prepare)


def _encode(images: KnownImages, chunks: dict[str, list[np.ndarray]], batch: list[Pixels]) -> None:
    if batch:
        for name, rows_bd in images.encode(batch).items():
            chunks[name].append(rows_bd)
