"""The stored measurements of a task: cosines of every model, labels, and caption embeddings of the texts."""

import io
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics.scored import Scored
from mode_ray.evaluate.tasks.task import Task
from mode_ray.run_directory import LABELS_FILE, ROUTING_FILE, TASK_SUMMARY, cosine_file
from mode_ray.storage import Location


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """The summary of a measured task; `task.json`, written last.

    Attributes:
        task: Name of the task.
        models: Names of the models, each with a file `cosines/<name>.npy` ('/' is written as '_').
        logit_scales: Logit scale by model.
        images: Number of used images.
        texts: Class names or captions, in order of the columns.
        skipped: Number of samples left out, by reason.
        examples: Place of the first sample left out, by reason.
        linear_probe: Metrics of linear probes by model, and by ensemble for the embeddings of all its members.
    """

    task: str
    models: tuple[str, ...]
    logit_scales: Mapping[str, float]
    images: int
    texts: tuple[str, ...]
    skipped: Mapping[str, int]
    examples: Mapping[str, str]
    linear_probe: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def covers(self, models: Iterable[str]) -> bool:
        """Whether the task was measured with all of these models."""
        return set(models) <= set(self.models)


@dataclass(frozen=True)
class TaskCosines:
    """A task's stored measurements.

    Attributes:
        summary: Summary of the task.
        cosines: Cosines by model, float32 [images, texts]; memory-mapped when loaded.
        labels: The labels, as described in `scored.Scored` for the kind of the task.
        routing_texts_ld: Caption embeddings of the task's texts, float32.
    """

    summary: TaskSummary
    cosines: Mapping[str, np.ndarray]
    labels: np.ndarray
    routing_texts_ld: np.ndarray

    def without_cosines(self) -> "TaskCosines":
        """The same without cosines, because those of many tasks do not fit into memory."""
        return replace(self, cosines={})

    def scored(self, task: Task, scores_il: np.ndarray, text_to_image_scores_il: np.ndarray | None = None) -> Scored:
        """Scores of a model or an ensemble with the labels of this task, for metrics."""
        merge = task.kind == "retrieval" and task.equal_captions == "one"
        captions = self.summary.texts if merge else None
        return Scored(
            kind=task.kind,
            scores_il=scores_il,
            labels=self.labels,
            captions=captions,
            text_to_image_scores_il=text_to_image_scores_il,
        )


def load_summary(directory: Location) -> TaskSummary | None:
    """The summary of a measured task, or None if it is not measured."""
    location = directory / TASK_SUMMARY
    if not location.exists():
        return None
    values = json.loads(location.read_text())
    return TaskSummary(**{**values, "models": tuple(values["models"]), "texts": tuple(values["texts"])})


def load_cosines(directory: Location) -> TaskCosines:
    """Memory-map the output of `measure_task`. Remote files are copied to disk until the arrays are freed.

    Raises:
        DataError: The task is not measured.
    """
    summary = load_summary(directory)
    if summary is None:
        raise DataError(f"{directory / TASK_SUMMARY}: missing; run `mode-ray evaluate` first")
    cosines = {name: _mapped(cosine_file(directory, name)) for name in summary.models}
    return TaskCosines(summary, cosines, load_array(directory / LABELS_FILE), load_array(directory / ROUTING_FILE))


def save_array(location: Location, array: np.ndarray) -> None:
    """Write one .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    location.write_bytes(buffer.getvalue())


def _mapped(location: Location) -> np.ndarray:
    """The memory-mapped array of a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = location
        if not location.is_local:
            file = Location.parse(folder) / location.name
            location.copy_to(file)
        mapped: np.ndarray = np.load(Path(file.path), mmap_mode="r", allow_pickle=False)
        return mapped  # a deleted file exists until its mapping is freed


def load_array(location: Location) -> np.ndarray:
    """Read what `save_array` wrote."""
    loaded: np.ndarray = np.load(io.BytesIO(location.read_bytes()), allow_pickle=False)
    return loaded
