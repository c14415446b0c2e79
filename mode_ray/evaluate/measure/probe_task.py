"""Linear probes of a task's models, on each one's embeddings and on those of an ensemble's members side by side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mode_ray.errors import DataError
from mode_ray.evaluate.measure.linear_probe import concatenated, fit_linear_probe
from mode_ray.evaluate.measure.split_features import Features
from mode_ray.evaluate.metrics.score import classification_metrics
from mode_ray.evaluate.tasks.samples import Split
from mode_ray.evaluate.tasks.task import Task
from mode_ray.evaluate.tasks.usable_samples import UsableSamples


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
    test_features_id: Mapping[str, np.ndarray],
    test_labels_i: np.ndarray,
    encode: Callable[[Split], tuple[UsableSamples, Features]],
) -> TaskProbes:
    """Fit on the training split, measure on the test split.

    Args:
        task: With a training split.
        test_features_id: Embeddings of the test images, by model.
        test_labels_i: Their classes.
        encode: Gives a split's samples and embeddings.

    Raises:
        DataError: A file cannot be read, or the training split is too small to learn from.
    """
    usable, train_id = encode("train")
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
