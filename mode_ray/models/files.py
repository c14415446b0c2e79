"""The files of a model: which they are, and whether they are there and complete, without loading the model."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mode_ray.config.train import FOLDER_WEIGHTS
from mode_ray.errors import UsageError, first_line
from mode_ray.models.architecture import (
    ARCHITECTURE_FIELD,
    CONFIG_FILE,
    HEAD_FILE,
    PRETRAINED_FIELD,
    TRUNK_FILE,
    WEIGHTS_FILE,
)
from mode_ray.run_directory import TRUNK_FOLDER
from mode_ray.storage import Location

_LENGTH_BYTES = 8
_MARKED_BYTES = 1 << 16
_MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors
# The weights that training changes whatever `train.model.lock` is, by their names in open_clip's models.
_TRAINED = re.compile(r"visual\.(head\.|proj$)|(text\.)?(proj\.|text_projection)|logit_")


@dataclass(frozen=True)
class ModelParts:
    """The files of a model.

    Attributes:
        folder: Has its config, and the files of its tokenizer and text tower.
        weights: Its weights: one file, or the trunk of several models and the head of this one.
    """

    folder: Location
    weights: tuple[Location, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        kind: Its type and shape.
        start: Its first byte in the file.
        size_bytes: Its size.
    """

    kind: str
    start: int
    size_bytes: int


def checkpoint_location(name: str, field: str = PRETRAINED_FIELD) -> Location:
    """Where a checkpoint file is.

    Args:
        name: The file's path or URI.
        field: The config field that names it, for messages.

    Raises:
        UsageError: There is no such file, or it is empty or cannot be examined.
    """
    location = Location.parse(name)
    try:
        if location.is_directory():
            raise UsageError(
                f"{field}: {name}: a directory; name the checkpoint file in it, or give a model's folder "
                f"as {ARCHITECTURE_FIELD} with {PRETRAINED_FIELD}: {FOLDER_WEIGHTS}"
            )
        if not location.exists():
            raise UsageError(f"{field}: {location}: no such file")
        if location.size_bytes() == 0:
            raise UsageError(f"{field}: {location}: the file is empty; copy the checkpoint again")
    except OSError as error:
        raise UsageError(f"{field}: {location}: cannot be read ({first_line(error)})") from None
    return location


@contextmanager
def local_checkpoint(name: str, field: str = PRETRAINED_FIELD) -> Iterator[Path]:
    """The checkpoint file as a file of this machine; a remote one is copied to a temporary folder meanwhile.

    Args:
        name: The file's path or URI.
        field: The config field that names it, for messages.

    Raises:
        UsageError: As `checkpoint_location`; or it cannot be copied.
    """
    location = checkpoint_location(name, field)
    try:
        if location.is_local:
            yield Path(location.path)
            return
        with TemporaryDirectory(prefix="mode-ray-checkpoint-") as folder:
            copy = Location.parse(folder) / location.name
            location.copy_to(copy)
            yield Path(copy.path)
    except OSError as error:
        raise UsageError(f"{field}: {location}: cannot be read ({first_line(error)})") from None


def model_parts(folder: Location) -> ModelParts:
    """The files of an expert folder, or of a head that `mode-ray export --shared-trunk` wrote beside its trunk."""
    if (folder / HEAD_FILE).exists():
        trunk = folder.parent / TRUNK_FOLDER
        return ModelParts(trunk, (trunk / TRUNK_FILE, folder / HEAD_FILE))
    return ModelParts(folder, (folder / WEIGHTS_FILE,))


def weights_mark(folder: Location, *, locked: bool) -> str:
    """Identity of an expert's weights: a hash (16 hex digits) of the file's size and of a part of it.

    Training changes every tensor that is not locked, so a small part is enough to tell two models apart: the last
    bytes or, with locked parts, the projections and the temperature too.
    """
    file = folder / WEIGHTS_FILE
    with file.open_input() as source:
        size = source.size()
        tail = bytes(source.read_at(min(size, _MARKED_BYTES), max(0, size - _MARKED_BYTES)))
        digest = hashlib.blake2b(size.to_bytes(8, "little") + tail, digest_size=8)
        tensors = (stored_tensors(file) or {}) if locked else {}
        for name in sorted(filter(_TRAINED.match, tensors)):
            digest.update(bytes(source.read_at(min(tensors[name].size_bytes, _MARKED_BYTES), tensors[name].start)))
    return digest.hexdigest()


def find_problem(folder: Location) -> str | None:
    """What is wrong with an expert folder, in a sentence that names the file; None if nothing is."""
    parts = model_parts(folder)
    for file in (parts.folder / CONFIG_FILE, *parts.weights):
        if not file.exists():
            return f"{file}: missing"
    return next((problem for file in parts.weights if (problem := _problem_of_weights(file)) is not None), None)


def stored_tensors(file: Location) -> dict[str, StoredTensor] | None:
    """The tensors of a safetensors file by name, from its header; None if it has no readable one."""
    with file.open_input() as source:
        header_bytes = int.from_bytes(source.read_at(_LENGTH_BYTES, 0), "little")
        if not 0 < header_bytes <= _MAX_HEADER_BYTES:
            return None
        text = bytes(source.read_at(header_bytes, _LENGTH_BYTES))
    first = _LENGTH_BYTES + header_bytes
    try:
        return {
            name: StoredTensor(
                kind=f"{tensor['dtype']} {tensor['shape']}",
                start=first + int(tensor["data_offsets"][0]),
                size_bytes=int(tensor["data_offsets"][1]) - int(tensor["data_offsets"][0]),
            )
            for name, tensor in json.loads(text).items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _problem_of_weights(weights: Location) -> str | None:
    size, expected = weights.size_bytes(), weights.complete(lambda: _expected_bytes(weights))
    if expected is None:
        return f"{weights}: not a readable safetensors file"
    if size != expected:
        return f"{weights}: {size:,} bytes, but its header says {expected:,}: half-written, or cut off while copied"
    return None


def _expected_bytes(weights: Location) -> int | None:
    """The file's size by its header: 8 bytes of length, the header, and the tensors after it."""
    tensors = stored_tensors(weights)
    if tensors is None:
        return None
    return max((tensor.start + tensor.size_bytes for tensor in tensors.values()), default=0)
