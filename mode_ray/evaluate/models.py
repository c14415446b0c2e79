"""Whether the models that an evaluation needs are there and whole, before anything is measured."""

import json
from collections.abc import Mapping

from mode_ray.errors import DataError
from mode_ray.storage import Location
from mode_ray.train.architecture import CONFIG_FILE, WEIGHTS_FILE
from mode_ray.train.budget import expert_name

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as safetensors has it


def check_models(n: int, models: Mapping[str, Location]) -> None:
    """Check every model's files without loading one.

    Args:
        n: Number of experts.
        models: Expert folders by name.

    Raises:
        DataError: A file is missing or half-written; names it, and how to go on without an expert.
    """
    experts = {expert_name(n, expert): expert for expert in range(n)}
    for name, folder in models.items():
        problem = find_problem(folder)
        if problem is None:
            continue
        mend = "copy or train it again (`mode-ray train retry`)"
        if name in experts:
            mend += f", or evaluate without it: evaluate.leave_out_experts=[{experts[name]}]"
        raise DataError(f"{problem}: {mend}")


def find_problem(folder: Location) -> str | None:
    """What is wrong with an expert folder, the file named; None where nothing is."""
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
    """The file's size as its header has it: 8 bytes of length, the header, and the tensors behind it."""
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
