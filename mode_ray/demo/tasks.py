"""The evaluation tasks over the held-out pairs, as task files."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mode_ray.demo.names import (
    VAGUE_CATEGORIES,
    category_name,
    group_name,
    provider_name,
    subgroup_name,
)
from mode_ray.demo.pairs import Pair
from mode_ray.storage import Location

MIN_HELD_OUT_IMAGES = 3
HELD_OUT_TARS = {"emoji": "emoji.tar", "icon": "icons.tar"}


@dataclass(frozen=True, kw_only=True)
class _Classification:
    name: str
    domain: str
    label_field: str
    readable: Callable[[str], str]
    templates: tuple[str, ...]


_CLASSIFICATIONS = (
    _Classification(
        name="emoji-group",
        domain="emoji",
        label_field="group",
        readable=group_name,
        templates=("an emoji of {}", "{} emoji", "{}"),
    ),
    _Classification(
        name="emoji-subgroup",
        domain="emoji",
        label_field="subgroup",
        readable=subgroup_name,
        templates=("an emoji of {}", "{} emoji", "{}"),
    ),
    _Classification(
        name="icon-provider",
        domain="icon",
        label_field="provider",
        readable=provider_name,
        templates=("{} icon", "a diagram symbol of {}", "{}"),
    ),
    _Classification(
        name="icon-category",
        domain="icon",
        label_field="category",
        readable=category_name,
        templates=("{} icon", "a diagram symbol for {}", "{}"),
    ),
)
_RETRIEVALS = {"emoji-retrieval": "emoji", "icon-retrieval": "icon"}
TASK_NAMES = (*(kind.name for kind in _CLASSIFICATIONS), *_RETRIEVALS)


def write_tasks(
    directory: Location, train: Sequence[Pair], held_out: Sequence[Pair]
) -> tuple[list[Location], dict[str, Any]]:
    """Write a task file for every task with at least two classes.

    A class needs training pairs and at least `MIN_HELD_OUT_IMAGES` held-out pairs. Held-out images of other classes
    are left out of the task.

    Args:
        directory: The data set's directory; the files are written to `tasks/`, with relative paths of their tars.
        train: Training pairs.
        held_out: Held-out pairs.

    Returns:
        The files, and for the manifest what each task contains and leaves out.
    """
    files: list[Location] = []
    notes: dict[str, Any] = {}
    for kind in _CLASSIFICATIONS:
        content, notes[kind.name] = _classification(kind, train, held_out)
        if len(content["classes"]) > 1:
            files.append(_write(directory, content))
    for name, domain in _RETRIEVALS.items():
        captions = Counter(pair.captions[0] for pair in held_out if pair.domain == domain)
        notes[name] = {"images": captions.total(), "repeated_captions": captions.total() - len(captions)}
        if captions:
            files.append(_write(directory, {"name": name, "kind": "retrieval", "paths": [_tar(domain)]}))
    return files, notes


def task_file(directory: Location, name: str) -> Location:
    """The file of a task."""
    return directory / "tasks" / f"{name}.yaml"


def _classification(
    kind: _Classification, train: Sequence[Pair], held_out: Sequence[Pair]
) -> tuple[dict[str, Any], dict[str, Any]]:
    trained = {pair.labels[kind.label_field] for pair in train if pair.domain == kind.domain}
    images = Counter(pair.labels[kind.label_field] for pair in held_out if pair.domain == kind.domain)
    classes = sorted(label for label in trained if _counts(label, images, kind))
    content = {
        "name": kind.name,
        "kind": "classification",
        "paths": [_tar(kind.domain)],
        "label_field": kind.label_field,
        "classes": classes,
        "class_names": {label: kind.readable(label) for label in classes},
        "templates": list(kind.templates),
    }
    left_out = {label: images[label] for label in sorted(trained | set(images)) if label not in set(classes)}
    note = {
        "images": sum(images[label] for label in classes),
        "classes": len(classes),
        "classes_left_out": len(left_out),
        "images_left_out": sum(left_out.values()),
        "held_out_images_of_classes_left_out": left_out,
    }
    return content, note


def _counts(label: str, images: Mapping[str, int], kind: _Classification) -> bool:
    vague = kind.label_field == "category" and label in VAGUE_CATEGORIES
    return not vague and images.get(label, 0) >= MIN_HELD_OUT_IMAGES


def _tar(domain: str) -> str:
    return f"../heldout/{HELD_OUT_TARS[domain]}"


def _write(directory: Location, content: Mapping[str, Any]) -> Location:
    file = task_file(directory, content["name"])
    file.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110))
    return file
