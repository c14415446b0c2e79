"""Evaluation tasks from YAML files: images with labels (zero-shot classification) or with captions (retrieval)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mode_ray.captions.parquet import open_parquet
from mode_ray.captions.shards import PAIR_FORMATS, Shard, list_shards
from mode_ray.captions.webdataset import JSON_SUFFIX, TEXT_SUFFIX, read_tar_samples
from mode_ray.config import CaptionsConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.settings import Settings, Strings
from mode_ray.storage import Location

_MAX_IMAGE_BYTES = 64 << 20
_ROWS_AT_ONCE = 256


class Task(Settings):
    """One task; docs/tasks.md has examples."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    kind: Literal["classification", "retrieval"]
    paths: Strings
    """Parquet files or WebDataset tars; relative paths count from the task file."""
    format: Literal["auto", "parquet", "webdataset"] = "auto"
    image_field: str = "image"
    """Parquet: the column with the encoded image."""
    label_field: str = "label"
    """Classification: the column, or the field of the `.json` member, with the label."""
    caption_field: str | None = None
    """Retrieval: the column (default `caption`), or the field of the `.json` member (default: the `.txt` member)."""
    classes: Strings = ()
    """Label values, in order; samples with other labels are left out and counted."""
    class_names: Mapping[str, str] = {}
    """Readable names of label values; by default the value with spaces for `_` and `-`."""
    templates: Annotated[tuple[str, ...], Field(strict=False)] = ("{}",)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "classification":
            if len(self.classes) < 2:
                raise ValueError("a classification task needs at least two classes")
            if len(set(self.classes)) < len(self.classes):
                raise ValueError("classes names one class twice")
            for template in self.templates:
                if "{}" not in template:
                    raise ValueError(f"template {template!r} has no {{}} for the class name")
        if not self.paths:
            raise ValueError("paths is empty")
        return self

    def class_texts(self) -> list[list[str]]:
        """For every class its name in every template."""
        names = [self.class_names.get(label, label.replace("_", " ").replace("-", " ")) for label in self.classes]
        return [[template.replace("{}", name) for template in self.templates] for name in names]

    @property
    def metric(self) -> str:
        """The main metric."""
        return "top1" if self.kind == "classification" else "text_to_image_r1"


@dataclass(frozen=True)
class Sample:
    """One image of a task.

    Attributes:
        image: The encoded image.
        text: Its label or its caption; None where it has none.
        place: File and row, for messages.
    """

    image: bytes | None
    text: str | None
    place: str


def load_tasks(paths: Sequence[str]) -> list[Task]:
    """Read a run's task files.

    Raises:
        UsageError: As `load_task`; or two of them have the same name, which is their results' directory.
    """
    tasks: dict[str, Task] = {}
    for path in paths:
        task = load_task(path)
        if task.name in tasks:
            raise UsageError(f"{path}: name: another task of evaluate.tasks is called {task.name!r} too; rename one")
        tasks[task.name] = task
    return list(tasks.values())


def load_task(path: str) -> Task:
    """Read a task file.

    Raises:
        UsageError: No such file, unknown or missing keys; names file and field.
    """
    location = Location.parse(path)
    try:
        values = yaml.safe_load(location.read_text())
    except FileNotFoundError:
        raise UsageError(f"evaluate.tasks: {path}: no such file") from None
    except OSError as error:
        raise UsageError(f"evaluate.tasks: {path}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        task = Task.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        raise UsageError(f"{path}: {field}: {problem['msg'].removeprefix('Value error, ')}") from None
    absolute = tuple(_beside(location, given) for given in task.paths)
    return task.model_copy(update={"paths": absolute})


def _beside(task_file: Location, path: str) -> str:
    if "://" in path or path.startswith("/"):
        return path
    place = task_file.parent
    for part in path.split("/"):
        if part == "..":
            place = place.parent
        elif part not in ("", "."):
            place = place / part
    return place.uri


def read_samples(task: Task) -> Iterator[Sample]:
    """Go through a task's samples in order.

    Raises:
        DataError: A file is missing or damaged, or a column does not exist; names file and field.
    """
    listing = CaptionsConfig(paths=task.paths, format=task.format)
    for shard in list_shards(listing, formats=PAIR_FORMATS):
        yield from (_tar_samples(task, shard) if shard.format == "webdataset" else _parquet_samples(task, shard))


def _tar_samples(task: Task, shard: Shard) -> Iterator[Sample]:
    from_json = task.kind == "classification" or task.caption_field is not None
    suffix = JSON_SUFFIX if from_json else TEXT_SUFFIX
    wanted = frozenset({suffix, "jpg", "jpeg", "png", "webp", "gif", "bmp"})
    field = task.label_field if task.kind == "classification" else task.caption_field
    for row, sample in enumerate(read_tar_samples(shard, wanted, _MAX_IMAGE_BYTES)):
        place = f"{shard.uri}: sample {row} ({sample.key})"
        image = next((content for name, content in sample.contents.items() if name != suffix), None)
        content = sample.contents.get(suffix)
        yield Sample(image, None if content is None else _text(content, field if from_json else None, place), place)


def _text(content: bytes, field: str | None, place: str) -> str | None:
    try:
        text = content.decode()
        if field is None:
            return text.strip()
        value = json.loads(text).get(field)
    except (ValueError, AttributeError):
        raise DataError(f"{place}: its text or .json member cannot be read") from None
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else str(value)


def _parquet_samples(task: Task, shard: Shard) -> Iterator[Sample]:
    file = open_parquet(shard)
    field = task.label_field if task.kind == "classification" else task.caption_field or "caption"
    for name in (task.image_field, field):
        if name not in file.schema_arrow.names:
            raise DataError(f"{shard.uri}: no column {name!r} (task {task.name}); it has {file.schema_arrow.names}")
    row = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[task.image_field, field]):
        for values in batch.to_pylist():
            text = values[field]
            if isinstance(text, list):
                text = text[0] if text else None
            place = f"{shard.uri}: row {row}"
            yield Sample(_image(values[task.image_field], task, place), None if text is None else str(text), place)
            row += 1


def _image(value: object, task: Task, place: str) -> bytes | None:
    if isinstance(value, dict):  # the layout of Hugging Face data sets
        value = value.get("bytes")
    if value is not None and not isinstance(value, bytes):
        raise DataError(f"{place}: column {task.image_field!r} holds no image bytes (task {task.name})")
    return value
