"""Divides the towers of a model with locked parts into a trunk, which training does not change, and a head.

The features of a trunk can be computed once an image or text, and shared by all models with the same trunk. The head
of a tower that is locked as a whole is the identity.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel

from mode_ray.errors import UsageError
from mode_ray.models.locking import LOCK_FIELD, locked_state, state_hash


@dataclass(frozen=True)
class DividedTower:
    """A tower in two parts: the head of the trunk's output is the tower's output.

    Attributes:
        trunk: Images or tokens to features [b, k].
        head: Features to embeddings [b, d], not normalised.
    """

    trunk: torch.nn.Module
    head: torch.nn.Module


@dataclass(frozen=True)
class DividedModel:
    """Both towers of a model, and the identity of its trunks.

    Attributes:
        image: The image tower.
        text: The text tower.
        trunk_hash: SHA-256 of all locked weights; equal for models whose trunks are equal.
    """

    image: DividedTower
    text: DividedTower
    trunk_hash: str


def divide(module: torch.nn.Module) -> DividedModel:
    """Divide an open_clip model whose towers are locked up to their projections.

    The parts share their weights with the model.

    Args:
        module: The model, after `lock_towers`.

    Raises:
        UsageError: More than a projection of a tower is trainable, so it has no features to share.
    """
    return DividedModel(*divide_towers(module), state_hash(locked_state(module)))


def divide_towers(module: torch.nn.Module) -> tuple[DividedTower, DividedTower]:
    """The image and the text tower of `divide`, without the hash; also of a module without memory.

    Raises:
        UsageError: As `divide`.
    """
    model: Any = module
    whole = getattr(model, "text", None)
    text = _divided_clip_text(model) if whole is None else _divided(whole, "text")
    return _divided(model.visual, "image"), text


def _divided(tower: Any, name: str) -> DividedTower:  # noqa: ANN401 - any tower of open_clip
    trainable = _trainable(tower)
    if not trainable:
        return DividedTower(tower, torch.nn.Identity())
    if isinstance(tower, TimmModel) and not _trainable(tower.trunk):
        return DividedTower(tower.trunk, tower.head)
    if isinstance(tower, HFTextEncoder) and not _trainable(tower.transformer):
        return DividedTower(without_part(tower, "proj", torch.nn.Identity()), tower.proj)
    for projection in ("proj", "text_projection"):
        if {parameter.partition(".")[0] for parameter in trainable} == {projection}:
            return DividedTower(without_part(tower, projection, None), projection_head(getattr(tower, projection)))
    raise UsageError(
        f"{LOCK_FIELD}.{name}: features can be shared only of a tower whose projection alone is trainable, but "
        f"{trainable[0]} is too; set it to all, or to {{groups: 1}} for a transformer of open_clip"
    )


def _divided_clip_text(clip: Any) -> DividedTower:  # noqa: ANN401 - an open_clip.CLIP
    """The text tower of open_clip's CLIP class, whose parts are attributes of the model itself."""
    trainable = [name for name in _trainable(clip) if not name.startswith(("visual.", "logit_"))]
    if not trainable:
        return DividedTower(_ClipText(clip), torch.nn.Identity())
    if {name.partition(".")[0] for name in trainable} == {"text_projection"}:
        return DividedTower(
            _ClipText(without_part(clip, "text_projection", None)), projection_head(clip.text_projection)
        )
    raise UsageError(
        f"{LOCK_FIELD}.text: features can be shared only of a tower whose projection alone is trainable, but "
        f"{trainable[0]} is too; set it to all or to {{groups: 1}}"
    )


class _ClipText(torch.nn.Module):
    """`encode_text` of a model as a module of its own. The model is not a child: its images are not part of this."""

    def __init__(self, clip: Any) -> None:  # noqa: ANN401 - an open_clip.CLIP
        super().__init__()
        self._clip = (clip,)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._clip[0].encode_text(texts)
        return features


class _Projection(torch.nn.Module):
    """Multiplies by a matrix, as open_clip's transformers do."""

    def __init__(self, matrix_kd: torch.nn.Parameter) -> None:
        super().__init__()
        self.matrix_kd = matrix_kd

    def forward(self, features_bk: torch.Tensor) -> torch.Tensor:
        return features_bk @ self.matrix_kd


def projection_head(projection: torch.nn.Module | torch.nn.Parameter) -> torch.nn.Module:
    """The projection of a tower as a module; open_clip's transformers have a matrix."""
    return projection if isinstance(projection, torch.nn.Module) else _Projection(projection)


def _trainable(module: torch.nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def without_part(module: torch.nn.Module, name: str, replacement: torch.nn.Module | None) -> Any:  # noqa: ANN401
    """A copy that shares all weights, with one part replaced."""
    part = copy.copy(module)
    part._parameters = {key: value for key, value in module._parameters.items() if key != name}
    part._modules = {key: value for key, value in module._modules.items() if key != name}
    setattr(part, name, replacement)
    return part
