"""Cosines of every image with every text for every model, computed in one pass over the images and stored.

Any routing rule is evaluated from these files without running a model again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.errors import DataError
from mode_ray.evaluate.measure.known_images import KnownImages
from mode_ray.evaluate.measure.measurements import TaskSummary, save_array
from mode_ray.evaluate.measure.options import MeasureOptions
from mode_ray.evaluate.measure.probe_task import TaskProbes, probe_task
from mode_ray.evaluate.measure.split_features import EncodedPart, Features, encode_split, merge_parts
from mode_ray.evaluate.metrics.metric_table import METRICS
from mode_ray.evaluate.metrics.scored import Scored
from mode_ray.evaluate.tasks.samples import Split
from mode_ray.evaluate.tasks.task import Task
from mode_ray.evaluate.tasks.usable_samples import UsableSamples
from mode_ray.models.encode import Expert
from mode_ray.models.together import encode_texts
from mode_ray.routing.weights import mean_direction
from mode_ray.run_directory import LABELS_FILE, ROUTING_FILE, TASK_SUMMARY, cosine_file
from mode_ray.storage import Location

Encode = Callable[[list[str]], np.ndarray]
_Sides = tuple[Mapping[str, np.ndarray], np.ndarray]  # text embeddings by model, and those of the caption encoder
_Value = TypeVar("_Value")


def measure_task(
    task: Task,
    images: KnownImages,
    encoder: CaptionEncoder,
    directory: Location,
    options: MeasureOptions,
    parts: Mapping[Split, Sequence[EncodedPart]] | None = None,
) -> TaskSummary:
    """Measure a task with all models, and write its files to a directory. Every image is decoded once.

    `parts` are the images that several workers have encoded, by split. By default the images are encoded here.

    Raises:
        DataError: A file cannot be read, no sample is usable, a class name has no embedding, or the metric is
            not defined on the samples.
    """
    torch.set_num_threads(options.placement.threads_per_task)
    experts = images.experts
    # Classes come before images, so that a name without an embedding is reported at once.
    sides = None if task.kind == "retrieval" else _class_sides(task, experts, encoder)

    def encode(split: Split) -> tuple[UsableSamples, Features]:
        if parts is None:
            return encode_split(task, split, images, options)
        return merge_parts(list(experts), parts[split])

    usable, features = encode("test")
    if sides is None:
        kept, sides = _caption_sides(usable, experts, encoder)
        features = {name: rows_id[kept] for name, rows_id in features.items()}
    texts, routing_ld = sides
    labels = usable.labels()
    for name, expert in experts.items():
        cosines_il = (features[name] @ texts[name].T).astype(np.float32)
        if not np.isfinite(cosines_il).all():
            raise DataError(f"{expert.folder}: its embeddings contain a value that is not finite: train it again")
        _check_metric(task, cosines_il, labels)
        save_array(cosine_file(directory, name), cosines_il)
    save_array(directory / LABELS_FILE, labels)
    save_array(directory / ROUTING_FILE, routing_ld)
    probes = TaskProbes({}, {}, {})
    if task.linear_probe:
        probes = probe_task(task, features, labels, encode)
    summary = TaskSummary(
        task=task.name,
        models=tuple(experts),
        logit_scales={name: expert.logit_scale for name, expert in experts.items()},
        images=usable.images,
        texts=tuple(usable.captions) or tuple(texts[0] for texts in task.class_texts()),
        skipped={**usable.skipped, **_of_training(probes.skipped)},
        examples={**usable.examples, **_of_training(probes.examples)},
        linear_probe=probes.metrics,
    )
    (directory / TASK_SUMMARY).write_text(json.dumps(asdict(summary), indent=1))
    return summary


def zero_shot_classifier(class_texts: Sequence[Sequence[str]], encode: Encode) -> np.ndarray:
    """One unit row per class: the mean direction of the embeddings of its texts.

    Raises:
        DataError: A text has no embedding, or the embeddings of a class cancel out; the message names the class.
    """
    flat_td = encode([text for texts in class_texts for text in texts])
    parts = np.split(flat_td, np.cumsum([len(texts) for texts in class_texts])[:-1])
    rows = []
    for texts, rows_td in zip(class_texts, parts, strict=True):
        try:
            rows.append(mean_direction(rows_td))
        except DataError as error:
            raise DataError(f"{texts[0]!r}: {error}") from None
    return np.stack(rows)


def _class_sides(task: Task, experts: Mapping[str, Expert], encoder: CaptionEncoder) -> _Sides:
    """The classifiers of all models, and the one of the caption encoder."""

    def classifier(encode: Encode, whose: str) -> np.ndarray:
        try:
            return zero_shot_classifier(task.class_texts(), encode)
        except DataError as error:
            raise DataError(f"{task.place}: classes: {whose} has no embedding of {error}") from None

    routing_ld = classifier(encoder.encode, f"the caption encoder {encoder.name}")
    flat = [text for texts in task.class_texts() for text in texts]
    encoded = zip(experts, encode_texts(list(experts.values()), flat), strict=True)
    return {name: classifier(partial(_given, rows_td), f"model {name}") for name, rows_td in encoded}, routing_ld


def _given(rows_td: np.ndarray, _: list[str]) -> np.ndarray:
    """An encoder whose answer is known."""
    return rows_td


def _caption_sides(
    usable: UsableSamples, experts: Mapping[str, Expert], encoder: CaptionEncoder
) -> tuple[np.ndarray, _Sides]:
    """Indices of the images whose captions can be routed, and these captions encoded by all models and the encoder."""
    routing_ld = encoder.encode(usable.captions)
    # A query with a zero embedding has no direction and cannot be routed.
    known_l = np.asarray(routing_ld.any(axis=1))
    kept = usable.keep_known(known_l)
    usable.require_some()
    texts = dict(zip(experts, encode_texts(list(experts.values()), usable.captions), strict=True))
    return kept, (texts, routing_ld[known_l])


def _check_metric(task: Task, scores_il: np.ndarray, labels: np.ndarray) -> None:
    problem = METRICS[task.kind][task.metric].problem(Scored(kind=task.kind, scores_il=scores_il, labels=labels))
    if problem is not None:
        raise DataError(f"{task.place}: metric: {task.metric} {problem}")


def _of_training(by_reason: Mapping[str, _Value]) -> dict[str, _Value]:
    return {f"{reason} (training split)": value for reason, value in by_reason.items()}
