"""Check that the files of a model's folder are complete, without loading the model."""

import hashlib
import json

from mode_ray.models.architecture import CONFIG_FILE, WEIGHTS_FILE
from mode_ray.storage import Location

_LENGTH_BYTES = 8
_MARKED_BYTES = 1 << 16
_MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors


def weights_mark(folder: Location) -> str:
    """Identity of an expert's weights: a hash (16 hex digits) of the file's size and last bytes.

    Training changes every tensor, so a small part of the file is enough to tell two models apart.
    """
    with (folder / WEIGHTS_FILE).open_input() as source:
        size = source.size()
        tail = bytes(source.read_at(min(size, _MARKED_BYTES), max(0, size - _MARKED_BYTES)))
    return hashlib.blake2b(size.to_bytes(8, "little") + tail, digest_size=8).hexdigest()


def find_problem(folder: Location) -> str | None:
    """What is wrong with an expert folder, in a sentence that names the file; None if nothing is."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).exists():
            return f"{folder / name}: missing"
    weights = folder / WEIGHTS_FILE
    size, expected = weights.size_bytes(), weights.complete(lambda: _expected_bytes(weights))
    if expected is None:
        return f"{weights}: not a readable safetensors file"
    if size != expected:
        return f"{weights}: {size:,} bytes, but its header says {expected:,}: half-written, or cut off while copied"
    return None


def _expected_bytes(weights: Location) -> int | None:
    """The file's size by its header: 8 bytes of length, the header, and the tensors after it."""
    with weights.open_input() as source:
        header_bytes = int.from_bytes(source.read_at(_LENGTH_BYTES, 0), "little")
        if not 0 < header_bytes <= _MAX_HEADER_BYTES:
            return None
        text = bytes(source.read_at(header_bytes, _LENGTH_BYTES))
    try:
        tensors = json.loads(text)
        ends = [int(tensor["data_offsets"][1]) for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return _LENGTH_BYTES + header_bytes + max(ends, default=0)
