"""The samples of a task, with one reader per layout of the data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mode_ray.captions.files import find_roots
from mode_ray.captions.image_column import BadImageError, stored_image
from mode_ray.captions.json_text import json_object
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.parquet import open_parquet, row_group_range
from mode_ray.captions.tar_samples import IMAGE_SUFFIXES, read_tar_samples
from mode_ray.captions.webdataset import JSON_SUFFIX, TEXT_SUFFIX
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.evaluate.tasks.benchmark_layout import MEMBERS, BenchmarkLayout, present_classes
from mode_ray.evaluate.tasks.task import BENCHMARK_FORMAT, FOLDER_FORMAT, Task, class_folders, label_key
from mode_ray.stages.work_unit import PAIR_FORMATS, WorkUnit
from mode_ray.storage import FileEntry, Location
from mode_ray.util.read_ahead import read_ahead

Split = Literal["test", "train"]
_Texts = tuple[str, ...] | None
_MAX_IMAGE_BYTES = 64 << 20
_ROWS_AT_ONCE = 256
_FILES_AHEAD = 32
_FILE_READERS = 8


@dataclass(frozen=True)
class Sample:
    """One image of a task.

    Attributes:
        image: The encoded image, or None if it is missing.
        texts: Its labels or captions; None if they are missing, empty if the data say that it has none.
        place: File and row, for messages.
    """

    image: bytes | None
    texts: tuple[str, ...] | None
    place: str


def read_samples(task: Task, split: Split = "test") -> Iterator[Sample]:
    """The samples of a task in order.

    Raises:
        DataError: A file is missing or damaged, or a column does not exist; the message names file and field.
    """
    paths = task.paths if split == "test" else task.train_paths
    if task.format == FOLDER_FORMAT:
        yield from _folder_samples(task, find_roots(paths))
    elif task.format == BENCHMARK_FORMAT:
        for work_unit in BenchmarkLayout(Location.parse(task.paths[0])).work_units(split):
            yield from _tar_samples(work_unit, MEMBERS[task.kind], _benchmark_reader(task))
    else:
        for work_unit in _listed(task, "paths" if split == "test" else "train_paths"):
            yield from (
                _webdataset_samples(task, work_unit) if work_unit.format == "webdataset" else _rows(task, work_unit)
            )


def _listed(task: Task, field: Literal["paths", "train_paths"]) -> Sequence[WorkUnit]:
    config = CaptionsConfig.model_validate({"paths": getattr(task, field), "format": task.format})
    try:
        return list_work_units(config, formats=PAIR_FORMATS, field=field)
    except DataError as error:
        raise DataError(f"{task.place}: {str(error).replace('captions.format', 'format')}") from None


def _folder_samples(task: Task, roots: list[Location]) -> Iterator[Sample]:
    """Every file in the folders below a root; the folder below the root is its class."""
    try:
        names = class_folders(roots)
    except UsageError as error:
        raise DataError(f"{task.place}: {error}") from None
    if task.labels == "index" and len(names) != len(task.classes):
        raise DataError(f"{roots[0]}: has {len(names)} folders, but {task.place} has {len(task.classes)} classes")
    present = {label_key(name) for name in names}
    if task.labels == "name" and (absent := sorted(name for name in task.classes if label_key(name) not in present)):
        raise DataError(f"{roots[0]}: has no folder {absent[0]!r}, which {task.place} names in classes")
    numbers = {name: str(number) for number, name in enumerate(names)}
    for root in roots:
        files = root.entries(recursive=True)
        contents = read_ahead(_image_of_file, files, ahead=_FILES_AHEAD, threads=_FILE_READERS)
        for file, content in zip(files, contents, strict=True):
            name, _, below = file.location.uri.removeprefix(f"{root.uri}/").partition("/")
            label = name if task.labels == "name" else numbers.get(name, name)
            yield Sample(content, (label,) if below else None, file.location.uri)


def _image_of_file(file: FileEntry) -> bytes | None:
    """The content of an image file, truncated above the size limit; None for files with another suffix."""
    if file.location.name.rpartition(".")[2].lower() not in IMAGE_SUFFIXES:
        return None
    location = file.location
    return location.complete(lambda: _head(location))


def _head(location: Location) -> bytes:
    with location.open_input() as source:
        return bytes(source.read(min(source.size(), _MAX_IMAGE_BYTES + 1)))


def _tar_samples(work_unit: WorkUnit, suffix: str, texts_of: Callable[[bytes, str], _Texts]) -> Iterator[Sample]:
    """The samples of a tar. The member with this suffix has the label or the captions."""
    for row, sample in enumerate(read_tar_samples(work_unit, IMAGE_SUFFIXES | {suffix}, _MAX_IMAGE_BYTES)):
        place = f"{work_unit.uri}: sample {row} ({sample.key})"
        image = next((content for name, content in sample.contents.items() if name != suffix), None)
        content = sample.contents.get(suffix)
        yield Sample(image, None if content is None else texts_of(content, place), place)


def _webdataset_samples(task: Task, work_unit: WorkUnit) -> Iterator[Sample]:
    field = task.caption_field if task.kind == "retrieval" else task.label_field
    if field is None:
        return _tar_samples(work_unit, TEXT_SUFFIX, lambda content, place: (_text(content, place),))
    return _tar_samples(work_unit, JSON_SUFFIX, lambda content, place: _json_texts(content, field, place))


def _benchmark_reader(task: Task) -> Callable[[bytes, str], _Texts]:
    if task.kind == "retrieval":
        return lambda content, place: tuple(line.strip() for line in _text(content, place).splitlines())
    if task.kind == "classification":
        return lambda content, place: (_text(content, place),)

    def marked(content: bytes, place: str) -> _Texts:
        present = present_classes(content)
        if present is None:
            raise DataError(f"{place}: its .npy member is not a vector of zeros and ones")
        return tuple(str(number) for number in present)

    return marked


def _text(content: bytes, place: str) -> str:
    try:
        return content.decode().removeprefix("\ufeff").strip()
    except UnicodeDecodeError:
        raise DataError(f"{place}: its text is not UTF-8") from None


def _json_texts(content: bytes, field: str, place: str) -> _Texts:
    try:
        return _as_texts(json_object(content).get(field))
    except ValueError:
        raise DataError(f"{place}: its text or .json member cannot be read") from None


def _rows(task: Task, work_unit: WorkUnit) -> Iterator[Sample]:
    """The rows of a parquet file."""
    file = open_parquet(work_unit)
    field = task.text_field
    for name in (task.image_field, field):
        if name not in file.schema_arrow.names:
            raise DataError(
                f"{work_unit.uri}: no column {name!r} (task {task.name}); it has {file.schema_arrow.names}"
            )
    row = work_unit.first_row
    groups = list(row_group_range(work_unit, file))
    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[task.image_field, field]):
        for values in batch.to_pylist():
            place = f"{work_unit.uri}: row {row}"
            yield Sample(_image(values[task.image_field], task, place), _as_texts(values[field]), place)
            row += 1


def _as_texts(value: object) -> _Texts:
    if isinstance(value, list):
        return tuple(str(one) for one in value if one is not None)
    return None if value is None else (str(value),)


def _image(value: object, task: Task, place: str) -> bytes | None:
    try:
        return stored_image(value, task.image_field, None, place)
    except BadImageError:
        return None
    except DataError as error:
        raise DataError(f"{str(error).partition(';')[0]} (task {task.name})") from None
