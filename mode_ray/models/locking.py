"""Locked towers: parts of a CLIP model that training does not change, as `train.model.lock` names them.

The meaning is that of open_clip's `lock_image_tower` and `lock_text_tower` (LiT, arXiv 2111.07991): the trunk is
locked up to a number of layer groups, and projections and temperature stay trainable. Unlike with open_clip, locked
batch norms stay the same modules and are kept in evaluation mode, so the names of the weights do not change.
"""

import hashlib
import io
from collections.abc import Mapping
from contextlib import redirect_stdout

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mode_ray.config.train import LockConfig, TowerLock, UnlockedGroups
from mode_ray.errors import UsageError, first_line

LOCK_FIELD = "train.model.lock"


def lock_towers(module: torch.nn.Module, lock: LockConfig) -> None:
    """Lock the towers of an open_clip model: their parameters need no gradients any more.

    Raises:
        UsageError: The tower has fewer layer groups, or cannot be locked in part.
    """
    if lock.image != "none":
        _lock(module, "image", lock.image)
    if lock.text != "none":
        _lock(module, "text", lock.text)


def _lock(module: torch.nn.Module, tower: str, lock: TowerLock) -> None:
    method = getattr(module, f"lock_{tower}_tower", None)
    place = f"{LOCK_FIELD}.{tower}"
    if method is None:
        raise UsageError(f"{place}: {type(module).__name__} cannot lock its {tower} tower; set it to none")
    unlocked = lock.groups if isinstance(lock, UnlockedGroups) else 0
    before = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    try:
        with redirect_stdout(io.StringIO()):  # open_clip prints how many layers it unlocks
            method(unlocked)
    except (RuntimeError, AttributeError, NotImplementedError, KeyError, AssertionError) as error:
        raise UsageError(f"{place}: open_clip cannot lock it ({first_line(error)}); set all or none") from None
    locked = before - {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not locked:
        raise UsageError(f"{place}: the tower has no more than {unlocked} layer groups, so nothing would be locked")


def set_training(module: torch.nn.Module) -> None:
    """Set training mode, but evaluation mode for modules without trainable parameters.

    A locked batch norm would otherwise replace its statistics, and dropout would change locked features.
    """
    module.train()
    for child in module.modules():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()


def locked_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that training does not change: locked parameters, and buffers of locked batch norms."""
    state: dict[str, torch.Tensor] = {}
    for name, child in module.named_modules():
        own = list(child.named_parameters(recurse=False))
        frozen = [key for key, parameter in own if not parameter.requires_grad]
        state.update({_joined(name, key): getattr(child, key) for key in frozen})
        if frozen and isinstance(child, _BatchNorm):
            state.update({_joined(name, key): buffer for key, buffer in child.named_buffers(recurse=False)})
    return state


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, shapes, types and values of weights; equal weights have equal hashes on all machines."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
