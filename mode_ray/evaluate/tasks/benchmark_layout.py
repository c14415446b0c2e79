"""The layout of the WebDataset evaluation sets that clip-benchmark publishes (`wds_*`).

ROOT/test/0.tar, 1.tar, …    images, each with .cls (class number), .npy (0 or 1 a class) or .txt (captions)
ROOT/test/nshards.txt        how many tars
ROOT/train/…                 the same, where there is a training split
ROOT/classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt
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
"""By kind of task, the suffix of the member that tells what an image shows."""
_MAX_TEXT_BYTES = 16 << 20
_TAR_NAME = re.compile(r"\d+\.tar")


@dataclass(frozen=True)
class BenchmarkLayout:
    """One evaluation set.

    Attributes:
        root: Its directory.
    """

    root: Location

    def kind(self) -> TaskKind:
        """What the set is for.

        Raises:
            UsageError: Its type is unknown.
        """
        if not (self.root / TYPE_FILE).exists():
            return "classification"
        told = " ".join(_lines(self.root / TYPE_FILE)).strip()
        kinds: dict[str, TaskKind] = {
            "classification": "classification",
            "multilabel": "multilabel",
            "retrieval": "retrieval",
        }
        if told not in kinds:
            raise UsageError(f"{self.root / TYPE_FILE}: {told!r} is none of {', '.join(kinds)}")
        return kinds[told]

    def class_names(self) -> list[str]:
        """Names in the order of the class numbers.

        Raises:
            UsageError: The file is missing or no UTF-8 text.
        """
        return _lines(self.root / CLASS_NAMES_FILE)

    def templates(self) -> list[str]:
        """Prompt templates, {c} standing for the name.

        Raises:
            UsageError: The file is missing or no UTF-8 text.
        """
        return _lines(self.root / TEMPLATES_FILE)

    def work_units(self, split: str) -> list[WorkUnit]:
        """The tars of a split in order.

        Raises:
            DataError: There are none, or not as many as the split's own count says.
        """
        folder = self.root / split
        tars = [file for file in folder.files() if _TAR_NAME.fullmatch(file.name)]
        if not tars:
            raise DataError(f"{folder}: no tar named 0.tar, 1.tar, …: this is no {split} split of the layout")
        if (folder / SHARD_COUNT_FILE).exists():
            told = " ".join(_lines(folder / SHARD_COUNT_FILE)).strip()
            if told != str(len(tars)):
                raise DataError(
                    f"{folder / SHARD_COUNT_FILE}: says {told[:20]!r}, but {len(tars)} tars lie there: copy it again"
                )
        tars.sort(key=lambda file: int(file.name.removesuffix(".tar")))
        return [WorkUnit(unit=unit_name(tar), uri=tar.uri, format="webdataset") for tar in tars]


def present_classes(content: bytes) -> tuple[int, ...] | None:
    """Numbers of the classes that a `.npy` member marks; None where it is no vector of zeros and ones."""
    try:
        vector = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    if vector.ndim != 1 or vector.dtype.kind not in "biuf" or not np.isin(vector, (0, 1)).all():
        return None
    return tuple(np.flatnonzero(vector).tolist())


def _lines(file: Location) -> list[str]:
    try:
        if file.size_bytes() > _MAX_TEXT_BYTES:
            raise UsageError(f"{file}: more than {_MAX_TEXT_BYTES} bytes for a file of short lines")
        text = file.read_text()
    except FileNotFoundError:
        raise UsageError(f"{file}: missing; the layout of clip-benchmark's sets has it") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
