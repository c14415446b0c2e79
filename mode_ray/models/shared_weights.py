"""How much of their weights the experts of a run share, from their files; no model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from mode_ray.models.architecture import WEIGHTS_FILE
from mode_ray.models.files import StoredTensor, stored_tensors
from mode_ray.storage import Location

_COMPARED_BYTES = 4096
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class SharedWeights:
    """The weights of experts with locked parts.

    Attributes:
        experts: Number of experts.
        share: Share of a model's bytes that is equal in all of them.
        size: Bytes of all experts together, the equal parts once, over those of one model.
    """

    experts: int
    share: float
    size: float

    def __str__(self) -> str:
        return (
            f"{self.experts} experts share {self.share:.1%} of their weights: in use they take {self.size:.2f} x the "
            "memory of one model, and the shared trunk runs once for all of them"
        )


def shared_weights(folders: Sequence[Location]) -> SharedWeights | None:
    """What the experts share; None for a single one, if it is nothing, or if they are on an object store.

    Tensors are compared by their first bytes: training changes every value of a tensor that is not locked.
    """
    files = [folder / WEIGHTS_FILE for folder in folders]
    if len(files) < 2 or not all(file.is_local and file.exists() for file in files):
        return None
    stored = [stored_tensors(file) or {} for file in files]
    kinds = [{name: tensor.kind for name, tensor in tensors.items()} for tensors in stored]
    if any(kind != kinds[0] for kind in kinds) or not kinds[0]:
        return None
    firsts = [_first_bytes(file, tensors) for file, tensors in zip(files, stored, strict=True)]
    sizes = {name: tensor.size_bytes for name, tensor in stored[0].items()}
    one = sum(sizes.values())
    distinct = {name: len({first[name] for first in firsts}) for name in sizes}
    share = sum(size for name, size in sizes.items() if distinct[name] == 1) / one
    if share < _LEAST_SHARE:
        return None
    return SharedWeights(len(files), share, sum(size * distinct[name] for name, size in sizes.items()) / one)


def _first_bytes(file: Location, tensors: dict[str, StoredTensor]) -> dict[str, bytes]:
    with file.open_input() as source:
        return {
            name: bytes(source.read_at(min(tensor.size_bytes, _COMPARED_BYTES), tensor.start))
            for name, tensor in tensors.items()
        }
