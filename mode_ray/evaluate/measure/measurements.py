"""The stored measurements of a task: every model's cosines, labels, and the texts' caption embeddings."""

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
    """What stands beside a task's cosines; `task.json`, written last.

    Attributes:
        task: Its name.
        models: Names of the models, each with a file `cosines/<name>.npy` ('/' written as '_').
        logit_scales: By model.
        images: Images used.
        texts: What the task's texts say: class names or captions, in order of the columns.
        skipped: Samples left out, by reason.
        examples: Where the first of each stands.
        linear_probe: Metrics of linear probes by model, and by ensemble for all its members' embeddings together.
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
        """Whether the task was measured with all of these; an expert may have been left out at the time."""
        return set(models) <= set(self.models)


@dataclass(frozen=True)
class TaskCosines:
    """A task's stored measurements.

    Attributes:
        summary: What they are of.
        cosines: By model, float32 [images, texts]; mapped files where they were loaded.
        labels: What is right, as `scored.Scored` has it for the task's kind.
        routing_texts_ld: Caption embeddings of the task's texts, float32.
    """

    summary: TaskSummary
    cosines: Mapping[str, np.ndarray]
    labels: np.ndarray
    routing_texts_ld: np.ndarray

    def without_cosines(self) -> "TaskCosines":
        """What a report still says of the task once it is compared; the cosines of many tasks fit no memory."""
        return replace(self, cosines={})

    def scored(self, task: Task, scores_il: np.ndarray, text_to_image_scores_il: np.ndarray | None = None) -> Scored:
        """Scores of this task's images beside what is right, for metrics.

        Args:
            task: Whose measurements these are: its kind, and how equal captions count.
            scores_il: Of a model or an ensemble.
            text_to_image_scores_il: For retrieving images, where they differ.
        """
        told_apart = task.kind != "retrieval" or task.equal_captions == "apart"
        captions = None if told_apart else self.summary.texts
        return Scored(
            kind=task.kind,
            scores_il=scores_il,
            labels=self.labels,
            captions=captions,
            text_to_image_scores_il=text_to_image_scores_il,
        )


def load_summary(directory: Location) -> TaskSummary | None:
    """The summary of a measured task, or None where it is not measured."""
    location = directory / TASK_SUMMARY
    if not location.exists():
        return None
    values = json.loads(location.read_text())
    return TaskSummary(**{**values, "models": tuple(values["models"]), "texts": tuple(values["texts"])})


def load_cosines(directory: Location) -> TaskCosines:
    """Map what `measure_task` wrote; of a remote directory copies on this machine's disk, gone with the arrays.

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
    """The array of a file, in pages that the system reads, and takes back, as it likes."""
    if location.is_local:
        return _map(Path(location.path))
    with tempfile.TemporaryDirectory() as folder:
        copy = Location.parse(folder) / location.name
        location.copy_to(copy)
        return _map(Path(copy.path))  # a mapped file stays until the array goes, without a name


def _map(file: Path) -> np.ndarray:
    mapped: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped


def load_array(location: Location) -> np.ndarray:
    """Read what `save_array` wrote."""
    loaded: np.ndarray = np.load(io.BytesIO(location.read_bytes()), allow_pickle=False)
    return loaded
