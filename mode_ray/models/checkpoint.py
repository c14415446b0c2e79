"""Reads checkpoints of open_clip models as people save them, and fits them to a model.

A checkpoint may be a bare state dict or hold one among other entries, and may carry the prefixes of the wrappers that
it was trained in. The conversions of open_clip's own loader are applied. A tensor that does not fit is named.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import safetensors.torch
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors import SafetensorError

from mode_ray.errors import UsageError, first_line
from mode_ray.models.architecture import ARCHITECTURE_FIELD, PRETRAINED_FIELD

NUMPY_SUFFIXES = (".npz", ".npy")
"""Weights of big_vision, which open_clip converts."""
_LOGIT_BIAS = "logit_bias"
# Names under which training scripts store the weights, besides optimizers and counters.
_WRAPPING_ENTRIES = ("state_dict", "model_state_dict", "model", "module")
# Of torch.nn.DataParallel and DistributedDataParallel, of torch.compile, and of modules that hold the model.
_WRAPPING_PREFIXES = ("module.", "_orig_mod.", "model.")
_COMPILED = "._orig_mod."
# open_clip saves these numbers with OpenAI's models, and older text towers the position ids.
_IGNORED = {"input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids"}
# open_clip resizes these to the model's image size, patch size and context length.
_RESIZED = {"positional_embedding", "text.positional_embedding", "visual.positional_embedding", "visual.pos_embed"}
_UNREADABLE = (RuntimeError, OSError, EOFError, UnpicklingError, SafetensorError, ValueError, KeyError, AttributeError)

_SAFETENSORS_HEAD = 9

State = dict[str, torch.Tensor]


def read_checkpoint(file: Path, name: str, field: str = PRETRAINED_FIELD) -> State:
    """The weights of a checkpoint, under the names of the bare model. They stay in the file until they are used.

    Args:
        file: The file on this machine.
        name: The checkpoint as the user wrote it, for messages.
        field: The config field that names it, for messages.

    Raises:
        UsageError: The file is damaged, or not a checkpoint.
    """
    try:
        content = _content(file)
    except _UNREADABLE as error:
        raise UsageError(f"{field}: {name}: {_unreadable(error)}") from None
    place = f"{field}: {name}"
    return _bare_names(_state_in(content, place), place)


def require_arrays(file: Path, name: str) -> None:
    """Check that a file of big_vision is complete; open_clip compares its arrays with the model when it converts them.

    Raises:
        UsageError: It is damaged.
    """
    try:
        arrays = np.load(file, mmap_mode="r")
        if isinstance(arrays, np.lib.npyio.NpzFile):
            arrays.close()
    except (*_UNREADABLE, BadZipFile) as error:
        raise UsageError(f"{PRETRAINED_FIELD}: {name}: {_unreadable(error)}") from None


def fit_state(module: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> State:
    """The weights as the model takes them, converted and resized as by open_clip.

    The model and the weights may be on the `meta` device.

    Args:
        module: The model.
        state: Weights under the names of a bare model.
        name: The checkpoint as the user wrote it, for messages.

    Raises:
        UsageError: The checkpoint is of another model; names the first key or shape that differs.
    """
    fitted: State = dict(convert_state_dict(module, dict(state)))
    if "positional_embedding" in fitted and not hasattr(module, "positional_embedding"):
        fitted = convert_to_custom_text_state_dict(fitted)
    expected = module.state_dict()
    fitted = {key: tensor for key, tensor in fitted.items() if key in expected or key not in _IGNORED}
    for key in ("logit_scale", _LOGIT_BIAS):
        if key in fitted and key in expected and fitted[key].numel() == 1:
            fitted[key] = fitted[key].reshape(expected[key].shape)
    if _LOGIT_BIAS in expected and _LOGIT_BIAS not in fitted and "logit_scale" in fitted:
        # A checkpoint of CLIP's loss that is trained with SigLIP's, as in open_clip.
        fitted[_LOGIT_BIAS] = torch.zeros_like(expected[_LOGIT_BIAS], device=fitted["logit_scale"].device)
    _require_equal_shapes(expected, fitted, name, _RESIZED)
    resize_pos_embed(fitted, module)
    resize_text_pos_embed(fitted, module)
    _require_equal_shapes(expected, fitted, name)
    return fitted


def _content(file: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    with file.open("rb") as opened:
        head = opened.read(_SAFETENSORS_HEAD)
    # By the content, as people rename files: safetensors begin with the length of their header, which is JSON.
    if head.endswith(b"{") and len(head) == _SAFETENSORS_HEAD:
        return safetensors.torch.load_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # the format of PyTorch before 1.6


def _unreadable(error: Exception) -> str:
    text = first_line(error)
    if "TorchScript" in str(error):
        return "a TorchScript archive, which is a program; give an open_clip tag such as `openai`, or a state dict"
    if isinstance(error, UnpicklingError) and "Weights only load failed" in text:
        return "holds Python objects besides weights, or is no checkpoint; save the model's state_dict alone"
    return f"damaged, cut off or no checkpoint ({text}); copy it again"


def _state_in(content: object, place: str) -> Mapping[str, torch.Tensor]:
    """The state dict in the content of a file."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPING_ENTRIES if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
            if tensors:
                return tensors
            found = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
            raise UsageError(f"{place}: holds no weights, only: {found}")
        content = inner
    raise UsageError(f"{place}: holds a {type(content).__name__}, not a state dict")


def _bare_names(state: Mapping[str, torch.Tensor], place: str) -> State:
    bare: State = {}
    for key, tensor in state.items():
        short = key.replace(_COMPILED, ".")
        while (
            prefix := next((prefix for prefix in _WRAPPING_PREFIXES if short.startswith(prefix)), None)
        ) is not None:
            short = short.removeprefix(prefix)
        if short in bare:
            raise UsageError(f"{place}: holds {short} twice, once as {key}; save one model alone")
        bare[short] = tensor
    return bare


def _require_equal_shapes(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], name: str, ignored: Iterable[str] = ()
) -> None:
    left_out = set(ignored)
    model = {key: list(tensor.shape) for key, tensor in expected.items() if key not in left_out}
    file = {key: list(tensor.shape) for key, tensor in found.items() if key not in left_out}
    other = f"it is a checkpoint of another model: set {ARCHITECTURE_FIELD} to its architecture"
    place = f"{PRETRAINED_FIELD}: {name}"
    for key, shape in model.items():
        if key in file and file[key] != shape:
            raise UsageError(f"{place}: {key} has shape {file[key]} here and {shape} in the architecture; {other}")
    if _LOGIT_BIAS in file and _LOGIT_BIAS not in model:
        raise UsageError(
            f"{place}: has a logit_bias, so it was trained with SigLIP's loss, and the model for "
            "train.loss.kind: clip has none; set train.loss.kind: siglip, or remove logit_bias from the checkpoint"
        )
    missing = next((key for key in model if key not in file), None)
    if missing is not None:
        raise UsageError(f"{place}: {missing} of the architecture is missing; {other}")
    unknown = next((key for key in file if key not in model), None)
    if unknown is not None:
        raise UsageError(f"{place}: {unknown} is not in the architecture; {other}")
