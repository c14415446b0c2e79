"""The output of the features stage as files that are mapped into memory, each image and caption once.

The files are beside the output if it is on a local disk, so that all training runs and processes share them. From an
object store, every node makes its own below the directory for temporary files.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mode_ray.errors import DataError, UsageError
from mode_ray.pairs.feature_table import CAPTION_ID, IMAGE, PROBLEM, TEXT, FeatureNote, Half, feature_column
from mode_ray.pairs.index import SHARD, PairIndex
from mode_ray.stages.manifest import read_manifest, read_output, unit_outputs
from mode_ray.storage import Location
from mode_ray.util.read_ahead import read_ahead

_CAPTION_BITS = 20  # of a pair's key; the rest are of its row
_ABOUT = "about.json"
_IDS = {"key": np.int64, "image": np.int32, "text": np.int32, "caption_id": np.int64}

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class FeatureRows:
    """The features of all pairs of a run.

    Attributes:
        images_ivk: Features of every image and view.
        texts_lk: Features of every distinct caption.
        image_p: The image of each pair; -1 if it could not be decoded.
        text_p: The caption of each pair.
        caption_id_p: Its `caption_id`.
        key_p: Row and caption index of each pair, ascending within a work unit.
        first_by_unit: First pair of each work unit, and the one after its last.
        problems: Why the pairs without an image have none.
        note: What they were computed with.
    """

    images_ivk: Half
    texts_lk: Half
    image_p: Int32Array
    text_p: Int32Array
    caption_id_p: Int64Array
    key_p: Int64Array
    first_by_unit: Mapping[str, tuple[int, int]]
    problems: Mapping[int, str]
    note: FeatureNote

    @classmethod
    def open(cls, features: Location) -> "FeatureRows":
        """Map the output of a features stage that is done; the first process on a node writes the files.

        Raises:
            UsageError: The stage is not done, or its outputs were computed with different weights or transforms.
            DataError: An output is missing or damaged.
        """
        manifest = read_manifest(features)
        if manifest is None:
            raise UsageError(f"{features}: the features stage is not done: run `mode-ray features` first")
        folder = _folder(features, manifest.content_hash)
        with _locked(folder.with_suffix(".lock")):
            if not folder.exists():
                _write(features, folder)
        about = json.loads((folder / _ABOUT).read_text())
        ids = {name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in _IDS}
        return cls(
            images_ivk=np.load(folder / "images.npy", mmap_mode="r").view(np.ndarray),
            texts_lk=np.load(folder / "texts.npy", mmap_mode="r").view(np.ndarray),
            image_p=ids["image"],
            text_p=ids["text"],
            caption_id_p=ids["caption_id"],
            key_p=ids["key"],
            first_by_unit={unit: (first, end) for unit, first, end in about["units"]},
            problems={int(pair): problem for pair, problem in about["problems"].items()},
            note=FeatureNote(**about["note"]),
        )

    def pairs_of(self, index: PairIndex) -> Int64Array:
        """The pairs of a training set, int64 [p]: where each row of its index is in the arrays above.

        Raises:
            DataError: A pair has no features.
        """
        columns = {name: index.column(name) for name in (SHARD, "row", "caption_index")}
        key_p = _keys(columns["row"], columns["caption_index"])
        order = np.argsort(columns[SHARD], kind="stable")
        numbers, starts = np.unique(columns[SHARD][order], return_index=True)
        pairs = np.empty(len(key_p), np.int64)
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            work_unit = index.work_units[number]
            first, end = self.first_by_unit.get(work_unit.unit, (0, 0))
            known = self.key_p[first:end]
            found = np.minimum(np.searchsorted(known, key_p[places]), max(0, end - first - 1))
            missing = np.ones(len(places), bool) if first == end else known[found] != key_p[places]
            if missing.any():
                row = columns["row"][places[missing.argmax()]]
                raise DataError(
                    f"{work_unit.uri}: row {row} has no features; delete the directory of the features stage and run "
                    "`mode-ray features` again"
                )
            pairs[places] = first + found
        return pairs


def _keys(row_p: npt.NDArray[np.integer], caption_index_p: npt.NDArray[np.integer]) -> Int64Array:
    """One number for row and caption index; unique in a work unit."""
    return (row_p.astype(np.int64) << _CAPTION_BITS) + caption_index_p


def _folder(features: Location, content_hash: str) -> Path:
    if features.is_local:
        return Path(features.path) / f"rows-{content_hash[:16]}"
    return Path(tempfile.gettempdir()) / f"mode-ray-{os.getuid()}" / f"features-{content_hash[:16]}"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock. The kernel releases it if the process dies."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write(features: Location, folder: Path) -> None:
    """Write the files into a temporary folder, then rename it."""
    outputs = sorted(unit_outputs(features), key=lambda output: output.name)
    temporary = folder.with_suffix(".unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    plan = _Plan.of(features, [output.name.removesuffix(".parquet") for output in outputs])
    _write_features(outputs, plan, temporary)
    for name, kind in _IDS.items():
        np.save(temporary / f"{name}.npy", plan.ids[name].astype(kind))
    about = {"units": plan.units, "problems": plan.problems, "note": asdict(plan.note)}
    (temporary / _ABOUT).write_text(json.dumps(about))
    temporary.rename(folder)


@dataclass(frozen=True)
class _Plan:
    """Where each pair's features belong.

    Attributes:
        units: Name, first pair and the one after the last.
        ids: The arrays of `_IDS`.
        order_p: Where each pair is in the outputs, counted over all of them.
        problems: By pair.
        note: That of all outputs.
    """

    units: Sequence[tuple[str, int, int]]
    ids: Mapping[str, npt.NDArray[Any]]
    order_p: Int64Array
    problems: Mapping[int, str]
    note: FeatureNote

    @classmethod
    def of(cls, features: Location, units: Sequence[str]) -> "_Plan":
        """Read what the outputs hold besides the features.

        Raises:
            UsageError: They were computed with different weights or transforms.
        """
        parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (*_IDS, "order")}
        listed: list[tuple[str, int, int]] = []
        problems: dict[int, str] = {}
        notes: dict[FeatureNote, str] = {}
        pairs = images = 0
        columns = ["row", "caption_index", CAPTION_ID, PROBLEM]
        tables = read_ahead(lambda unit: read_output(features, unit, columns), units, ahead=4, threads=4)
        for unit, table in zip(units, tables, strict=True):
            notes.setdefault(FeatureNote.of(table.schema), unit)
            key_p = _keys(table["row"].to_numpy(), table["caption_index"].to_numpy())
            order = np.argsort(key_p, kind="stable")
            bad = table[PROBLEM].is_valid().to_numpy()[order]
            _, image_p = np.unique(key_p[order] >> _CAPTION_BITS, return_inverse=True)
            parts["key"].append(key_p[order])
            parts["caption_id"].append(table[CAPTION_ID].to_numpy()[order])
            parts["image"].append(np.where(bad, -1, image_p + images))
            parts["order"].append(order + pairs)
            reasons = table[PROBLEM].to_pylist() if bad.any() else []
            problems |= {pairs + place: reasons[order[place]] for place in np.flatnonzero(bad).tolist()}
            listed.append((unit, pairs, pairs + len(key_p)))
            pairs, images = pairs + len(key_p), images + (int(image_p.max()) + 1 if len(image_p) else 0)
        if len(notes) > 1:
            (one, first), (other, second) = list(notes.items())[:2]
            what = "weights" if one.trunk != other.trunk else "image transforms"
            raise UsageError(
                f"{features}: the features of {first} and {second} are of different {what}: delete this directory and "
                "run `mode-ray features` again"
            )
        ids = {name: np.concatenate(parts[name]) for name in _IDS if name != "text"}
        _, ids["text"] = np.unique(ids["caption_id"], return_inverse=True)
        return cls(listed, ids, np.concatenate(parts["order"]), problems, next(iter(notes)))


def _write_features(outputs: Sequence[Location], plan: "_Plan", folder: Path) -> None:
    """Write the features of every image, and of the first pair of every caption."""
    schema = outputs[0].read_parquet_footer().schema.to_arrow_schema()
    width, text_width = (schema.field(name).type.list_size for name in (IMAGE, TEXT))
    views = plan.note.views
    image_p, text_p = plan.ids["image"], plan.ids["text"]
    images = _new_array(folder / "images.npy", (int(image_p.max()) + 1, views, width // views))
    texts = _new_array(folder / "texts.npy", (int(text_p.max()) + 1, text_width))
    is_first_p = np.zeros(len(text_p), bool)
    is_first_p[np.unique(text_p, return_index=True)[1]] = True
    units = [unit for unit, _, _ in plan.units]
    tables = read_ahead(lambda unit: read_output(outputs[0].parent, unit, [IMAGE, TEXT]), units, ahead=1)
    for (_, first, end), table in zip(plan.units, tables, strict=True):
        own_p, order_p = image_p[first:end], plan.order_p[first:end] - first
        numbers, places = np.unique(own_p, return_index=True)
        numbers, places = numbers[numbers >= 0], places[numbers >= 0]
        images[numbers] = feature_column(table, IMAGE)[order_p[places]].reshape(len(numbers), *images.shape[1:])
        new = np.flatnonzero(is_first_p[first:end])
        texts[text_p[first:end][new]] = feature_column(table, TEXT)[order_p[new]]
    images.flush()
    texts.flush()


def _new_array(file: Path, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - a numpy.memmap
    return np.lib.format.open_memmap(file, "w+", np.float16, shape)


def require_same_input(rows: FeatureRows, trunk: str, transform: str, features: Location) -> None:
    """Check that features were computed with the trunk and the transform of a model.

    Raises:
        UsageError: They were not.
    """
    for found, wanted, what in (
        (rows.note.trunk, trunk, "other weights than the model's locked parts"),
        (rows.note.transform, transform, "another image transform than the model's (size, crops, mean or deviation)"),
    ):
        if found != wanted:
            raise UsageError(
                f"{features}: these features are of {what}: restore the model, or delete this directory and run "
                "`mode-ray features` again"
            )
