"""One model whose weights are the weighted mean of the experts' (the paper's section on averaging; model soups)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch

from mode_ray.errors import DataError
from mode_ray.models.architecture import WEIGHTS_FILE
from mode_ray.storage import Location

Tensors = dict[str, torch.Tensor]


def average_weights(folders: Sequence[Location], weight_c: npt.NDArray[np.floating]) -> Tensors:
    """Read one expert after the other and add up: two models at most are in memory.

    Counters (integer tensors) are averaged and rounded. Running statistics of batch normalisation are averaged like
    weights, which is only near to what the averaged model would measure; vision transformers have none.

    Args:
        folders: The experts' folders.
        weight_c: Their weights, not negative; scaled to sum to 1.

    Returns:
        Tensors by name, in the experts' own dtypes.

    Raises:
        DataError: A file is damaged, or not of the same model as the first; names it.
    """
    share_c = np.asarray(weight_c, np.float64) / np.sum(weight_c)
    total: Tensors = {}
    first: Tensors = {}
    for folder, share in zip(folders, share_c.tolist(), strict=True):
        tensors = _read(folder / WEIGHTS_FILE)
        first = first or {name: tensor.new_empty(0) for name, tensor in tensors.items()}
        _require_same_model(folder / WEIGHTS_FILE, tensors, total or tensors)
        for name, tensor in tensors.items():
            part = tensor.to(torch.float64) * share
            total[name] = total[name].add_(part) if name in total else part
    return {name: _as_before(value, first[name].dtype) for name, value in total.items()}


def _as_before(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (value if dtype.is_floating_point else value.round()).to(dtype)


def _read(file: Location) -> Tensors:
    try:
        tensors: Tensors = safetensors.torch.load(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file}: missing; the expert was not trained to its end") from None
    except safetensors.SafetensorError as error:
        raise DataError(f"{file}: damaged ({error}); train this expert again") from None
    return tensors


def _require_same_model(file: Location, tensors: Tensors, others: Tensors) -> None:
    shapes, expected = ({name: tensor.shape for name, tensor in part.items()} for part in (tensors, others))
    differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if differing:
        raise DataError(
            f"{file}: not the same model as the first expert's, they differ in {len(differing)} tensors "
            f"({differing[0]}): only experts of one architecture can be averaged"
        )
