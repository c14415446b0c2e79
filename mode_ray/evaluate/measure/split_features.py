"""Image embeddings of a split by all models. Every image is decoded and preprocessed once, by one worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch

from mode_ray.config.captions import LimitsConfig
from mode_ray.config.evaluate import EvaluatePlacement
from mode_ray.evaluate.measure.measurements import load_array, save_array
from mode_ray.evaluate.tasks.samples import Split, read_samples
from mode_ray.evaluate.tasks.task import Task
from mode_ray.evaluate.tasks.usable_samples import UsableSamples
from mode_ray.models.encode import Expert
from mode_ray.storage import Location

_MAX_PIXELS = LimitsConfig().max_image_pixels

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
    task: Task, split: Split, experts: Mapping[str, Expert], placement: EvaluatePlacement
) -> tuple[UsableSamples, Features]:
    """Embed the usable images of a split.

    Raises:
        DataError: A file cannot be read, or no sample is usable.
    """
    usable, _, features = _encode_share(task, split, experts, placement, worker=0, workers=1)
    usable.require_some()
    return usable, features


def encode_part(
    task: Task,
    split: Split,
    experts: Mapping[str, Expert],
    placement: EvaluatePlacement,
    worker: int,
    folder: Location,
) -> EncodedPart:
    """Embed the share of one worker: one of every `workers_per_task` batches of samples. Others are not decoded.

    Raises:
        DataError: A file cannot be read.
    """
    usable, numbers, features = _encode_share(task, split, experts, placement, worker, placement.workers_per_task)
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
    experts: Mapping[str, Expert],
    placement: EvaluatePlacement,
    worker: int,
    workers: int,
) -> tuple[UsableSamples, list[int], Features]:
    prepare = next(iter(experts.values())).prepare
    usable, numbers = UsableSamples(task, placement.max_image_pixels or _MAX_PIXELS), list[int]()
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in experts}
    batch: list[torch.Tensor] = []
    encode = partial(_encode, experts, chunks)
    for number, sample in enumerate(read_samples(task, split)):
        if number // placement.batch_size % workers != worker:
            continue
        image = usable.take(sample)
        if image is not None:
            numbers.append(number)
            batch.append(prepare(image))
        if len(batch) == placement.batch_size:
            encode(batch)
            batch = []
    encode(batch)
    nothing = np.empty((0, 0), np.float32)
    return usable, numbers, {name: np.concatenate(parts) if parts else nothing for name, parts in chunks.items()}


def _encode(experts: Mapping[str, Expert], chunks: dict[str, list[np.ndarray]], batch: list[torch.Tensor]) -> None:
    if batch:
        images_b3hw = torch.stack(batch)
        for name, expert in experts.items():
            chunks[name].append(expert.encode_images(images_b3hw))
