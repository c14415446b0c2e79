"""The layout of the WebDataset evaluation sets that clip-benchmark publishes (`wds_*`).

ROOT/test/0.tar, 1.tar, …    images, each with .cls (class number), .npy (0 or 1 per class) or .txt (captions)
ROOT/test/nshards.txt        number of tars
ROOT/train/…                 the same for the training split, if there is one
ROOT/classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt

Text files are read as by clip-benchmark: blanks around a line, byte order marks and capitals in the type do not
matter.
"""

import io
import re
from dataclasses import dataclass

import numpy as np

from mode_ray.errors import DataError, UsageError
from mode_ray.evaluate.metrics.scored import TaskKind
from mode_ray.stages.work_unit import WorkUnit, unit_name
from mode_ray.storage import Location

CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
TYPE_FILE = "dataset_type.txt"
SHARD_COUNT_FILE = "nshards.txt"
MEMBERS: dict[TaskKind, str] = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}
"""Suffix of the member with the label or the captions of an image, by kind of task."""
_MAX_TEXT_BYTES = 16 << 20
_TAR_NAME = re.compile(r"\d+\.tar")


@dataclass(frozen=True)
class BenchmarkLayout:
    """An evaluation set in the directory `root`."""

    root: Location

    def kind(self) -> TaskKind:
        """The kind of task of the set.

        Raises:
            UsageError: The type of the set is unknown.
        """
        if not (self.root / TYPE_FILE).exists():
            return "classification"
        stated = " ".join(text_lines(self.root / TYPE_FILE))
        kind = next((kind for kind in MEMBERS if kind == stated.lower()), None)
        if kind is None:
            raise UsageError(f"{self.root / TYPE_FILE}: {stated!r} is not one of {', '.join(MEMBERS)}")
        return kind

    def work_units(self, split: str) -> list[WorkUnit]:
        """The tars of a split in order.

        Raises:
            DataError: There are no tars, or their number differs from `nshards.txt`.
        """
        folder = self.root / split
        tars = [file for file in folder.files() if _TAR_NAME.fullmatch(file.name)]
        if not tars:
            raise DataError(f"{folder}: no tar named 0.tar, 1.tar, …: not a {split} split of this layout")
        if (folder / SHARD_COUNT_FILE).exists():
            stated = " ".join(text_lines(folder / SHARD_COUNT_FILE))
            if not stated.isdecimal() or int(stated) != len(tars):
                raise DataError(
                    f"{folder / SHARD_COUNT_FILE}: says {stated[:20]!r}, but there are {len(tars)} tars: copy again"
                )
        tars.sort(key=lambda file: int(file.name.removesuffix(".tar")))
        return [WorkUnit(unit=unit_name(tar), uri=tar.uri, format="webdataset") for tar in tars]


def present_classes(content: bytes) -> tuple[int, ...] | None:
    """Numbers of the classes that a `.npy` member marks; None if it is not a vector of zeros and ones."""
    try:
        vector = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    if vector.ndim != 1 or vector.dtype.kind not in "biuf" or not np.isin(vector, (0, 1)).all():
        return None
    return tuple(np.flatnonzero(vector).tolist())


def class_names(root: Location) -> list[str]:
    """The class names of a set in the order of their numbers; raises `UsageError` if they cannot be read.

    An empty line is a class without a name, as in the published set clevr_closest_object_distance.
    """
    return text_lines(root / CLASS_NAMES_FILE)


def class_templates(root: Location) -> list[str]:
    """The templates of a set; raises `UsageError` if they cannot be read."""
    return [line for line in text_lines(root / TEMPLATES_FILE) if line]


def text_lines(file: Location) -> list[str]:
    """The lines of a file of the layout, without blanks around them and without empty lines at the end.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        if file.size_bytes() > _MAX_TEXT_BYTES:
            raise UsageError(f"{file}: more than {_MAX_TEXT_BYTES:,} bytes")
        text = file.read_text().removeprefix("\ufeff")
    except FileNotFoundError:
        raise UsageError(f"{file}: missing; the layout of clip-benchmark requires it") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None
    return [line.strip() for line in text.rstrip().splitlines()]
