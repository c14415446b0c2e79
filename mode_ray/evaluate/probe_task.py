"""Linear probes of a task's models, on each one's embeddings and on those of an ensemble's members side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mode_ray.config import EvaluatePlacement
from mode_ray.errors import DataError
from mode_ray.evaluate.linear_probe import concatenated, fit_linear_probe
from mode_ray.evaluate.metrics import classification_metrics
from mode_ray.evaluate.split_features import encode_split
from mode_ray.evaluate.tasks import Task
from mode_ray.expert import Expert


@dataclass(frozen=True)
class TaskProbes:
    """What linear probes reach on a task.

    Attributes:
        metrics: On the test split, by model, and by ensemble for all its members together.
        skipped: Samples of the training split that were left out, by reason.
        examples: Where the first of each stands.
    """

    metrics: Mapping[str, Mapping[str, float]]
    skipped: Mapping[str, int]
    examples: Mapping[str, str]


def probe_task(
    task: Task,
    experts: Mapping[str, Expert],
    test_features_id: Mapping[str, np.ndarray],
    test_labels_i: np.ndarray,
    placement: EvaluatePlacement,
    max_pixels: int,
) -> TaskProbes:
    """Fit on the training split, measure on the test split.

    Args:
        task: With a training split.
        experts: Models by name.
        test_features_id: Embeddings of the test images, by model.
        test_labels_i: Their classes.
        placement: Batch size.
        max_pixels: Larger images are left out.

    Raises:
        DataError: A file cannot be read, or the training split is too small to learn from.
    """
    usable, train_id = encode_split(task, "train", experts, placement, max_pixels)
    tested = {**test_features_id, **concatenated(test_features_id)}
    labels_i, classes = usable.labels(), len(task.classes)
    metrics = {}
    for name, learned_id in {**train_id, **concatenated(train_id)}.items():
        try:
            probe = fit_linear_probe(learned_id, labels_i, classes)
        except DataError as error:
            raise DataError(f"{task.place}: train_paths: {error}") from None
        metrics[name] = classification_metrics(probe.scores(tested[name]), test_labels_i, classes)
    return TaskProbes(metrics, usable.skipped, usable.examples)
