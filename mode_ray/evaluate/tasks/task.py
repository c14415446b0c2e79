"""Evaluation tasks from YAML files: images with classes (zero-shot classification) or with captions (retrieval)."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from mode_ray.captions.files import find_roots, path_exists
from mode_ray.config.base import Settings, Strings
from mode_ray.errors import UsageError
from mode_ray.evaluate.metrics.metric_table import METRICS
from mode_ray.evaluate.metrics.scored import TaskKind
from mode_ray.evaluate.tasks.benchmark_layout import MEMBERS, BenchmarkLayout, class_names, class_templates
from mode_ray.evaluate.tasks.builtin_texts import PREFIX, builtin_texts
from mode_ray.evaluate.tasks.clip_benchmark_texts import Texts
from mode_ray.storage import Location
from mode_ray.util.path_notation import expand_path, join_path, parse_path

BENCHMARK_FORMAT: Final = "clip-benchmark"
FOLDER_FORMAT: Final = "folder"
_PLACEHOLDER = "{}"


class Task(Settings):
    """An evaluation task; docs/tasks.md has examples."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    kind: TaskKind
    format: Literal["auto", "parquet", "webdataset", "folder", "clip-benchmark"] = "auto"
    paths: Strings
    """Parquet files, tars, folders of images, or the one root of a clip-benchmark set; relative to the task file."""
    train_paths: Strings = ()
    """The same for the training split of a linear probe; a clip-benchmark set has it in its `train` folder."""
    image_field: str = "image"
    """Parquet: the column with the encoded image."""
    label_field: str = "label"
    """Classification: the column, or the field of the `.json` member, with the label or a list of labels."""
    caption_field: str | None = None
    """Retrieval: the column (default `caption`), or the field of the `.json` member (default: the `.txt` member)."""
    equal_captions: Literal["one", "apart"] = "one"
    """Retrieval: `one`: equal captions are one text, right for every image that has it. `apart`: each caption is right
    only for its own image, as in clip-benchmark; this is the default for its layout."""
    labels: Literal["name", "index"] = "name"
    """How the data give the class of an image: as one of `classes`, or as its index in them, from 0."""
    classes: Strings = ()
    """Classes in order, or `builtin:NAME`. The default is the names of the folders or of the clip-benchmark set."""
    class_names: Mapping[str, str] = {}
    """Readable names of classes. If labels are names, the default is the class with spaces for `_` and `-`."""
    templates: Annotated[tuple[str, ...], Field(strict=False)] = (_PLACEHOLDER,)
    """Prompts with {} for the class name, or `builtin:NAME`."""
    metric: str = Field(default_factory=lambda fields: next(iter(METRICS[fields["kind"]])))
    """The main metric. All other metrics of the kind are measured too."""
    groups: Strings = ()
    """Names of groups whose mean is reported, such as the variants of one dataset."""
    linear_probe: bool = False
    """Also fit linear classifiers on the embeddings of the training split."""
    _file: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _as_elsewhere(cls, values: Any) -> Any:  # noqa: ANN401  (pydantic's own contract)
        """Defaults: class numbers for class names from elsewhere, and clip-benchmark's counting for its sets."""
        if not isinstance(values, dict):
            return values
        benchmark = values.get("format") == BENCHMARK_FORMAT
        defaults: dict[str, str] = {"equal_captions": "apart"} if benchmark else {}
        if benchmark or isinstance(values.get("classes"), str):
            defaults["labels"] = "index"
        return {**defaults, **values}

    @field_validator("classes", "templates", mode="before")
    @classmethod
    def _looked_up(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401  (pydantic's own contract)
        if not isinstance(value, str):
            return value
        texts: Texts = "classes" if info.field_name == "classes" else "templates"
        if not value.startswith(PREFIX):
            raise ValueError(f"must be a list or a name such as {PREFIX}NAME, not {value!r}")
        return builtin_texts(texts, value)

    @field_validator("paths")
    @classmethod
    def _some_path(cls, paths: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not paths:
            raise ValueError("is empty")
        if info.data.get("format") == BENCHMARK_FORMAT and len(paths) > 1:
            raise ValueError(f"names {len(paths)} places; a clip-benchmark set has one root")
        return paths

    @field_validator("labels")
    @classmethod
    def _by_number_where_the_layout_says_so(cls, labels: str, info: ValidationInfo) -> str:
        if labels == "name" and info.data.get("format") == BENCHMARK_FORMAT:
            raise ValueError("must be index: a clip-benchmark set has class numbers")
        return labels

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, classes: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # By number, two classes can share a name, as in ImageNet's list. By name they would be ambiguous.
        twice = _first_twice(label_key(name) for name in classes) if info.data.get("labels") == "name" else None
        if twice is not None:
            raise ValueError(f"names one class twice: {twice!r}")
        return classes

    @field_validator("templates")
    @classmethod
    def _with_a_place_for_the_name(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not templates:
            raise ValueError("is empty; {} alone is the name itself")
        # clip-benchmark writes {c}.
        plain = tuple(template.replace("{c}", _PLACEHOLDER) for template in templates)
        for number, template in enumerate(plain):
            if _PLACEHOLDER not in template:
                raise ValueError(f"template {number}, {template!r}, has no {{}} for the class name")
        return plain

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind")
        if kind is not None and metric not in METRICS[kind]:
            raise ValueError(f"{metric!r} is not a metric of {kind} tasks; there are {', '.join(METRICS[kind])}")
        return metric

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "retrieval":
            if self.format == FOLDER_FORMAT:
                raise ValueError("format: folders have classes but no captions, so kind must be classification")
            if self.linear_probe:
                raise ValueError("linear_probe: only classification tasks have one")
            return self
        if self.kind == "multilabel" and (self.format == FOLDER_FORMAT or self.linear_probe):
            field = "format: a folder tells" if self.format == FOLDER_FORMAT else "linear_probe: it learns"
            raise ValueError(f"{field} one class an image: kind must be classification")
        if len(self.classes) < 2:
            raise ValueError(f"classes: a {self.kind} task needs at least two classes, not {len(self.classes)}")
        self._check_names()
        reason = METRICS[self.kind][self.metric].class_count_problem(len(self.classes))
        if reason is not None:
            raise ValueError(f"metric: {self.metric} {reason}")
        if self.linear_probe and not self.train_paths and self.format != BENCHMARK_FORMAT:
            raise ValueError("train_paths: a linear probe learns from a training split; name its files")
        return self

    def _check_names(self) -> None:
        unknown = sorted(set(self.class_names) - set(self.classes))
        if unknown:
            raise ValueError(f"class_names: {unknown[0]!r} is not one of classes")
        names = self.names()
        # By number, a name can be empty if the templates are not, as in a set of clip-benchmark.
        texts = [[name] for name in names] if self.labels == "name" else self.class_texts()
        blank = (number for number, of_class in enumerate(texts) if not all(text.strip() for text in of_class))
        empty = next(blank, None)
        if empty is not None:
            field = "class_names" if self.classes[empty] in self.class_names else "classes"
            raise ValueError(f"{field}: class {empty}, {self.classes[empty]!r}, has an empty name")
        twice = _first_twice(names) if self.labels == "name" else None
        if twice is not None:
            raise ValueError(f"class_names: two classes are called {twice!r}: give them different names")

    def names(self) -> list[str]:
        """Readable names of the classes, in order."""
        if self.labels == "index":
            return [self.class_names.get(name, name) for name in self.classes]
        return [self.class_names.get(label, label.replace("_", " ").replace("-", " ")) for label in self.classes]

    def class_texts(self) -> list[list[str]]:
        """For every class, its name in every template."""
        return [[template.replace(_PLACEHOLDER, name) for template in self.templates] for name in self.names()]

    @property
    def place(self) -> str:
        """The file of the task, or its name if it has none, for messages."""
        return self._file or f"task {self.name}"

    @property
    def text_field(self) -> str:
        """The field of labels or captions in the data, for messages."""
        if self.format == FOLDER_FORMAT:
            return "the folder's name"
        if self.format == BENCHMARK_FORMAT:
            return f".{MEMBERS[self.kind]}"
        return self.caption_field or "caption" if self.kind == "retrieval" else self.label_field


def label_key(label: str) -> str:
    """The normalised form in which labels are compared, because file systems encode letters differently."""
    return unicodedata.normalize("NFC", label)


def class_folders(roots: Iterable[Location]) -> list[str]:
    """Sorted names of the folders below the roots, which are the classes; `UsageError` for a root without any."""
    names: set[str] = set()
    for root in roots:
        found = [folder.name for folder in root.directories()]
        if not found:
            raise UsageError(f"paths: {root}: no folder in it; put the images of each class in one folder")
        names.update(found)
    return sorted(names)


def task_files(paths: Sequence[str]) -> list[str]:
    """The task files of `evaluate.tasks`, with braces and wildcards expanded.

    Raises:
        UsageError: A path cannot be meant, cannot be listed, or nothing matches its wildcards.
    """
    files: list[str] = []
    for text in paths:
        try:
            patterns = expand_path(text, parse_path, path_exists)
            for pattern in patterns:
                matching = Location(pattern.base).glob(pattern.rest) if pattern.rest else []
                if pattern.rest and not matching:
                    raise UsageError(f"{text}: nothing matches it")
                # The text itself if it names one file, so that messages show what was written.
                files += [entry.location.uri for entry in matching] or [text if len(patterns) == 1 else pattern.uri]
        except (UsageError, OSError) as error:
            raise UsageError(f"evaluate.tasks: {error}") from None
    return files


def load_tasks(paths: Sequence[str]) -> list[Task]:
    """Read the task files of a run.

    Raises:
        UsageError: As `load_task`, or two tasks have the same name, which is the directory of their results.
    """
    tasks: dict[str, Task] = {}
    for path in task_files(paths):
        task = load_task(path)
        if task.name in tasks:
            raise UsageError(f"{path}: name: another task of evaluate.tasks is called {task.name!r} too; rename one")
        tasks[task.name] = task
    return list(tasks.values())


def load_task(path: str) -> Task:
    """Read a task file, and the class names and templates stored with its data.

    Raises:
        UsageError: The file does not exist, or a key or value is wrong; the message names file and field.
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
        task = Task.model_validate(_completed(values, location) if isinstance(values, dict) else values)
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        field = ".".join(str(part) for part in problem["loc"])
        if not field and problem["type"] == "value_error":
            raise UsageError(f"{path}: {message}") from None
        raise UsageError(f"{path}: {field or '(top level)'}: {message}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    task._file = path
    return task


def _completed(values: Mapping[str, Any], task_file: Location) -> dict[str, Any]:
    """The values of a task with absolute paths and the defaults from its data. Values of a wrong type are kept."""
    found: dict[str, Any] = dict(values)
    for field in ("paths", "train_paths"):
        given = found.get(field)
        if isinstance(given, list) and all(isinstance(path, str) for path in given):
            try:
                found[field] = [uri for path in given for uri in _paths_beside(task_file, path)]
            except (UsageError, OSError) as error:
                raise UsageError(f"{field}: {error}") from None
    paths = found.get("paths")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        return found
    if found.get("format") == FOLDER_FORMAT and "classes" not in found:
        return {"classes": class_folders(find_roots(paths)), **found}
    if found.get("format") != BENCHMARK_FORMAT:
        return found
    layout = BenchmarkLayout(Location.parse(paths[0]))
    kind = layout.kind()
    if kind != found.get("kind", kind):
        raise UsageError(f"kind: is {found['kind']}, but the set at {layout.root} is for {kind}")
    if kind != "retrieval":
        if "classes" not in found:
            found["classes"] = class_names(layout.root)
        if "templates" not in found:
            found["templates"] = class_templates(layout.root)
    return found


def _paths_beside(task_file: Location, text: str) -> list[str]:
    """The paths that one entry of a task names, absolute. Relative ones start at the folder of the task file."""
    resolve = partial(join_path, task_file.parent.uri)
    found = [pattern.uri for pattern in expand_path(text, resolve, path_exists)]
    # The fingerprint of an evaluation has the paths of its tasks: absolute ones are kept as written.
    return [text] if len(found) == 1 and ("://" in text or text.startswith("/")) else found


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
