"""Pairs of three domains and tasks over held-out pairs, for `science.py`: emoji, icons and small photos.

Without files, the pairs are the demo's emoji and icons. `emoji.parquet` has other vendors' emoji in place of the
demo's, `photos32.parquet` has photos of 150 classes. Whole concepts and look-alikes are held out together. A hash
divides the held-out images into a development split, for choosing settings, and a test split, for the final report.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from mode_ray.demo.build import draw_all
from mode_ray.demo.emoji import emoji_pairs
from mode_ray.demo.icons import icon_pairs
from mode_ray.demo.names import VAGUE_CATEGORIES, category_name, group_name, provider_name, subgroup_name
from mode_ray.demo.pairs import Drawing, stable_hash
from mode_ray.demo.split import group_drawings

Split = Literal["train", "development", "test"]
DATA_VERSION = 3
PAIRS_PER_SHARD = 4_000
MOST_CAPTIONS = 4
FEWEST_IMAGES_OF_A_CLASS = 5
# A fifth of the drawings, because there are few of them and a task needs hundreds; a tenth of the photos.
DRAWINGS_HELD_OUT_PERCENT = 20
PHOTOS_HELD_OUT_PERCENT = 10


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image with its captions.

    Attributes:
        domain: `emoji`, `icon` or `photo`.
        key: Its name within the domain.
        group: Images of one group are all held out, or none of them is.
        image: An encoded file.
        captions: Distinct texts.
        labels: For the tasks.
    """

    domain: str
    key: str
    group: str
    image: bytes
    captions: tuple[str, ...]
    labels: Mapping[str, str]

    @property
    def split(self) -> Split:
        """Its split, by the hash of its group."""
        share = PHOTOS_HELD_OUT_PERCENT if self.domain == "photo" else DRAWINGS_HELD_OUT_PERCENT
        if stable_hash("held out", self.domain, self.group) % 100 >= share:
            return "train"
        return "development" if stable_hash("split", self.domain, self.group) % 2 else "test"


@dataclass(frozen=True, kw_only=True)
class ScienceData:
    """The data set on disk.

    Attributes:
        work_units: Parquet files of training pairs.
        tasks: Task files by split.
        counts: Images by domain and split.
    """

    work_units: Sequence[Path]
    tasks: Mapping[str, Sequence[Path]]
    counts: Mapping[str, int]


def build_science_data(folder: Path, emoji: Path | None, photos: Path | None, limit: int | None) -> ScienceData:
    """Write shards and tasks, or reuse those of an earlier call with the same arguments.

    Args:
        folder: The directory to write to.
        emoji: `emoji.parquet`, or None for the demo's emoji.
        photos: `photos32.parquet`, or None for no photos.
        limit: Largest number of images of each domain; None for all.
    """
    made_from = {"version": DATA_VERSION, "emoji": str(emoji), "photos": str(photos), "limit": limit}
    note = folder / "data.json"
    if note.exists() and json.loads(note.read_text())["made_from"] == made_from:
        return _stored(folder)
    items = [*_drawn("icon", draw_all(_first(icon_pairs(0), limit))[0])]
    if emoji is None:
        items += _drawn("emoji", draw_all(_first(emoji_pairs(0)[0], limit))[0])
    else:
        items += _emoji(emoji, limit)
    if photos is not None:
        items += _photos(photos, limit)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*/*"):
        old.unlink()
    _write_training(folder / "train", [item for item in items if item.split == "train"])
    for split in ("development", "test"):
        _write_tasks(folder / split, items, split)
    counts = Counter(f"{item.domain}, {item.split}" for item in items)
    note.write_text(json.dumps({"made_from": made_from, "counts": dict(sorted(counts.items()))}, indent=1))
    return _stored(folder)


def _stored(folder: Path) -> ScienceData:
    return ScienceData(
        work_units=sorted((folder / "train").glob("*.parquet")),
        tasks={split: sorted((folder / split).glob("*.yaml")) for split in ("development", "test")},
        counts=json.loads((folder / "data.json").read_text())["counts"],
    )


def _first(rows: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` rows, evenly spaced."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[place] for place in np.linspace(0, len(rows) - 1, limit).astype(int)]


def _drawn(domain: str, drawings: Sequence[Drawing]) -> list[Item]:
    groups = _groups([drawing.pair.concept for drawing in drawings], [drawing.pixels_hwc for drawing in drawings])
    return [
        Item(
            domain=domain,
            key=drawing.pair.key,
            group=group,
            image=drawing.png(),
            captions=drawing.pair.captions[:MOST_CAPTIONS],
            labels=drawing.pair.labels,
        )
        for drawing, group in zip(drawings, groups, strict=True)
    ]


def _emoji(file: Path, limit: int | None) -> list[Item]:
    rows = _first(pq.read_table(file).to_pylist(), limit)
    pixels = [np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB").resize((64, 64))) for row in rows]
    groups = _groups([row["base_key"] for row in rows], pixels)
    return [
        Item(
            domain="emoji",
            key=f"{row['vendor']}-{row['key']}",
            group=group,
            image=row["image"],
            captions=tuple(dict.fromkeys([row["caption"], *row["captions"]]))[:MOST_CAPTIONS],
            labels={"group": row["group"], "subgroup": row["subgroup"]},
        )
        for row, group in zip(rows, groups, strict=True)
    ]


def _photos(file: Path, limit: int | None) -> list[Item]:
    return [
        Item(
            domain="photo",
            key=row["key"],
            group=row["key"],
            image=row["image"],
            captions=(row["caption"],),
            labels={"class": row["label"], "kind": _wordnet_kind(row["wnid"])},
        )
        for row in _first(pq.read_table(file).to_pylist(), limit)
    ]


def _groups(concepts: Sequence[str], pixels: Sequence[np.ndarray]) -> list[str]:
    """The group of each image, named after its alphabetically first concept."""
    numbers = group_drawings(concepts, np.stack(pixels)).tolist()
    names: dict[int, str] = {}
    for number, concept in zip(numbers, concepts, strict=True):
        names[number] = min(concept, names.get(number, concept))
    return [names[number] for number in numbers]


def _write_training(folder: Path, items: Sequence[Item]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(items, key=lambda item: stable_hash("order", item.domain, item.key))
    for number, start in enumerate(range(0, len(ordered), PAIRS_PER_SHARD)):
        part = ordered[start : start + PAIRS_PER_SHARD]
        table = pa.table(
            {
                "key": [f"{item.domain}-{item.key}" for item in part],
                "image": [item.image for item in part],
                "caption": pa.array([list(item.captions) for item in part], pa.list_(pa.string())),
            }
        )
        pq.write_table(table, folder / f"{number:05d}.parquet")


@dataclass(frozen=True, kw_only=True)
class _Classes:
    """A classification task over a domain, or over the images whose label `only[0]` has the value `only[1]`."""

    domain: str
    label: str
    readable: Any
    templates: tuple[str, ...]
    # The classes of the photos are of about equal size, but one class has 0.4 of all icons.
    metric: str = "mean_per_class"
    only: tuple[str, str] | None = None

    def has(self, item: Item) -> bool:
        """Whether the task uses an image."""
        return item.domain == self.domain and (self.only is None or item.labels[self.only[0]] == self.only[1])


def _plain(name: str) -> str:
    return name.replace("-", " ").replace("_", " ")


# WordNet numbers its nouns by lexicographer file, so the number implies the kind of thing.
_WORDNET_KINDS = {"n01": "animal", "n02": "animal", "n03": "artifact", "n04": "artifact", "n07": "food"}
_FIRST_ARTIFACT = "n026"


def _wordnet_kind(wnid: str) -> str:
    """`animal`, `artifact`, `food`, or `other` for places, plants and the rest."""
    kind = _WORDNET_KINDS.get(wnid[:3], "other")
    return "artifact" if kind == "animal" and wnid >= _FIRST_ARTIFACT else kind


def _photo_classes(kind: str | None = None) -> _Classes:
    templates = ("a photo of a {}.", "{}")
    only = None if kind is None else ("kind", kind)
    return _Classes(domain="photo", label="class", readable=_plain, templates=templates, metric="top1", only=only)


_CLASSIFICATIONS = {
    "photo-class": _photo_classes(),
    # Many classes of one kind, as in the benchmarks of pets, cars and food.
    "photo-animal": _photo_classes("animal"),
    "photo-artifact": _photo_classes("artifact"),
    "photo-food": _photo_classes("food"),
    "emoji-group": _Classes(
        domain="emoji", label="group", readable=group_name, templates=("an emoji of {}", "{} emoji", "{}")
    ),
    "emoji-subgroup": _Classes(
        domain="emoji", label="subgroup", readable=subgroup_name, templates=("an emoji of {}", "{} emoji", "{}")
    ),
    "icon-provider": _Classes(
        domain="icon", label="provider", readable=provider_name, templates=("{} icon", "a diagram symbol of {}", "{}")
    ),
    "icon-category": _Classes(
        domain="icon", label="category", readable=category_name, templates=("{} icon", "a diagram symbol for {}", "{}")
    ),
}
# Not of photos: their sentences describe the class.
_RETRIEVALS = {"emoji-retrieval": "emoji", "icon-retrieval": "icon"}


def _write_tasks(folder: Path, items: Sequence[Item], split: str) -> None:
    """Write the split's images by domain, and the task files."""
    folder.mkdir(parents=True, exist_ok=True)
    own = [item for item in items if item.split == split]
    for domain in sorted({item.domain for item in own}):
        part = [item for item in own if item.domain == domain]
        fields = sorted(part[0].labels)
        columns: dict[str, Any] = {field: [item.labels[field] for item in part] for field in fields}
        columns |= {
            "image": [item.image for item in part],
            "caption": [item.captions[0] for item in part],
        }
        pq.write_table(pa.table(columns), folder / f"{domain}.parquet")
    for name, kind in _CLASSIFICATIONS.items():
        images = Counter(item.labels[kind.label] for item in own if kind.has(item))
        trained = {item.labels[kind.label] for item in items if kind.has(item) and item.split == "train"}
        classes = sorted(
            label
            for label in trained
            if images[label] >= FEWEST_IMAGES_OF_A_CLASS and (name != "icon-category" or label not in VAGUE_CATEGORIES)
        )
        if len(classes) > 1:
            content = {
                "kind": "classification",
                "metric": kind.metric,
                "label_field": kind.label,
                "classes": classes,
                "class_names": {label: kind.readable(label) for label in classes},
                "templates": list(kind.templates),
            }
            _write_task(folder, name, kind.domain, content)
    for name, domain in _RETRIEVALS.items():
        if any(item.domain == domain for item in own):
            _write_task(folder, name, domain, {"kind": "retrieval"})


def _write_task(folder: Path, name: str, domain: str, content: Mapping[str, Any]) -> None:
    task = {"name": name, "paths": [f"{domain}.parquet"], **content}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True))
