"""Linear probes of a task, on the embeddings of each model and on those of all members of an ensemble."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mode_ray.errors import DataError
from mode_ray.evaluate.measure.linear_probe import concatenated, fit_linear_probe
from mode_ray.evaluate.measure.split_features import Features
from mode_ray.evaluate.metrics.score import measure
from mode_ray.evaluate.metrics.scored import Scored
from mode_ray.evaluate.tasks.samples import Split
from mode_ray.evaluate.tasks.task import Task
from mode_ray.evaluate.tasks.usable_samples import UsableSamples


@dataclass(frozen=True)
class TaskProbes:
    """The results of linear probes on a task.

    Attributes:
        metrics: Metrics on the test split, by model, and by ensemble for all its members together.
        skipped: Number of samples of the training split left out, by reason.
        examples: Place of the first one, by reason.
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
    """Fit on the training split and measure on the test split.

    Raises:
        DataError: A file cannot be read, or the training split is too small.
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
        scored = Scored(kind="classification", scores_il=probe.scores(tested[name]), labels=test_labels_i)
        metrics[name] = measure(scored)
    return TaskProbes(metrics, usable.skipped, usable.examples)
