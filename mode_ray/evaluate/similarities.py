"""Cosines of every image with every text, for every model, in one pass over the images; stored for all routing rules.

A new routing rule is evaluated from these files without running a model again.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image

from mode_ray.config import EvaluatePlacement
from mode_ray.encoders.encoder import CaptionEncoder
from mode_ray.errors import DataError
from mode_ray.evaluate.measurements import (
    LABELS_FILE,
    ROUTING_FILE,
    SUMMARY_FILE,
    TaskSummary,
    cosine_file,
    save_array,
)
from mode_ray.evaluate.tasks import Sample, Task, read_samples
from mode_ray.expert import Expert
from mode_ray.images import decode_image
from mode_ray.routing import mean_direction
from mode_ray.storage import Location

_NO_IMAGE = "no image"
_BAD_IMAGE = "undecodable image"
_NO_TEXT = "no text"
_OTHER_CLASS = "of no class of the task"
_UNKNOWN_WORDS = "caption without a word that the caption encoder knows"


def measure_task(
    task: Task,
    models: Mapping[str, Location],
    encoder: CaptionEncoder,
    directory: Location,
    placement: EvaluatePlacement,
    max_pixels: int,
) -> TaskSummary:
    """Measure a task with all models, decoding every image once.

    Args:
        task: The task.
        models: Expert folders by name.
        encoder: The caption encoder that routing uses.
        directory: Where the task's files belong.
        placement: Batch size and threads.
        max_pixels: Larger images are left out.

    Raises:
        DataError: A model or file cannot be read, or no sample is usable.
    """
    torch.set_num_threads(placement.threads_per_task)
    experts = {name: Expert(folder) for name, folder in models.items()}
    prepare = next(iter(experts.values())).prepare
    collected = _Collector(task)
    features: dict[str, list[np.ndarray]] = {name: [] for name in models}
    batch: list[torch.Tensor] = []
    for sample in read_samples(task):
        image = collected.take(sample, max_pixels)
        if image is not None:
            batch.append(prepare(image))
        if len(batch) == placement.batch_size:
            _encode(experts, batch, features)
            batch = []
    _encode(experts, batch, features)
    features_id = {name: np.concatenate(parts) for name, parts in features.items() if parts}
    routing_ld = _text_side(task, collected.captions, encoder.encode) if collected.numbers else np.empty((0, 0))
    if task.kind == "retrieval":
        # A zero embedding has no direction: such a query cannot be routed.
        known_l = np.asarray(routing_ld.any(axis=1))
        collected.keep_known(known_l)
        routing_ld = routing_ld[known_l]
        features_id = {name: rows_id[known_l] for name, rows_id in features_id.items()}
    if not collected.numbers:
        raise DataError(
            f"task {task.name}: no usable sample ({dict(collected.skipped)}); look at its paths and fields"
        )
    texts = (
        tuple(name[0] for name in task.class_texts()) if task.kind == "classification" else tuple(collected.captions)
    )
    for name, expert in experts.items():
        cosines_il = features_id[name] @ _text_side(task, collected.captions, expert.encode_texts).T
        save_array(cosine_file(directory, name), cosines_il.astype(np.float32))
    save_array(directory / LABELS_FILE, np.array(collected.numbers, np.int64))
    save_array(directory / ROUTING_FILE, routing_ld)
    summary = TaskSummary(
        task=task.name,
        models=tuple(models),
        logit_scales={name: expert.logit_scale for name, expert in experts.items()},
        images=len(collected.numbers),
        texts=texts,
        skipped=dict(collected.skipped),
        examples=collected.examples,
    )
    (directory / SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=1))
    return summary


class _Collector:
    """Counts and numbers the samples of a task as they come."""

    def __init__(self, task: Task) -> None:
        self._classes = {label: number for number, label in enumerate(task.classes)}
        self._retrieval = task.kind == "retrieval"
        self.numbers: list[int] = []
        self.captions: list[str] = []
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def take(self, sample: Sample, max_pixels: int) -> Image.Image | None:
        """The decoded image of a usable sample; None for others, which are counted."""
        reason, place = self._refusal(sample), sample.place
        if reason is None and sample.image is not None and sample.text is not None:
            try:
                image = decode_image(sample.image, max_pixels, sample.place)
            except DataError as error:
                reason, place = _BAD_IMAGE, str(error)
            else:
                self._number(sample.text)
                return image
        self.skipped[str(reason)] += 1
        self.examples.setdefault(str(reason), place)
        return None

    def keep_known(self, known_l: np.ndarray) -> None:
        """Drop and count the captions (of a retrieval task) that are not marked."""
        unknown = [caption for caption, known in zip(self.captions, known_l, strict=True) if not known]
        if unknown:
            self.skipped[_UNKNOWN_WORDS] += len(unknown)
            self.examples[_UNKNOWN_WORDS] = repr(unknown[0])
        self.captions = [caption for caption, known in zip(self.captions, known_l, strict=True) if known]
        self.numbers = list(range(len(self.captions)))

    def _refusal(self, sample: Sample) -> str | None:
        """Why a sample cannot be used, as far as that shows before its image is decoded."""
        if not sample.text:
            return _NO_TEXT
        if not self._retrieval and sample.text not in self._classes:
            return _OTHER_CLASS
        return _NO_IMAGE if sample.image is None else None

    def _number(self, text: str) -> None:
        if self._retrieval:
            self.numbers.append(len(self.captions))
            self.captions.append(text)
        else:
            self.numbers.append(self._classes[text])


def _encode(experts: Mapping[str, Expert], batch: list[torch.Tensor], features: dict[str, list[np.ndarray]]) -> None:
    if batch:
        images_b3hw = torch.stack(batch)
        for name, expert in experts.items():
            features[name].append(expert.encode_images(images_b3hw))


def _text_side(task: Task, captions: list[str], encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """One unit row a text: a caption's embedding, or the mean direction of a class name's templates."""
    if task.kind == "retrieval":
        return encode(captions)
    names = task.class_texts()
    flat = encode([text for texts in names for text in texts])
    per_class = np.split(flat, np.cumsum([len(texts) for texts in names])[:-1])
    return np.stack([mean_direction(rows_td) for rows_td in per_class])
