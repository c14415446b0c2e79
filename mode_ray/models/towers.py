"""The parts of a tower: a trunk up to the projection, and the projection as its head.

The features of a trunk can be computed once an image or text, and used by all heads of equal trunks. A tower of a kind
that is not known here is a trunk as a whole.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel

from mode_ray.models.short_texts import short_text_features

_LOGITS = ("logit_scale", "logit_bias")
_PROJECTIONS = ("proj", "text_projection")


def _call(tower: Any, inputs: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - any tower of open_clip
    features: torch.Tensor = tower(inputs)
    return features


def _encode_image(model: Any, images: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - any model of open_clip
    features: torch.Tensor = model.encode_image(images, normalize=False)
    return features


def _encode_text(model: Any, texts: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - any model of open_clip
    features: torch.Tensor = model.encode_text(texts, normalize=False)
    return features


@dataclass(frozen=True, eq=False)
class TowerLayout:
    """Where the trunk and the head of a tower are.

    Attributes:
        owner: The module that has the parts of both.
        outside: Names of the owner's parts that do not belong to the trunk.
        projection: The one of them that is the head; None if the head is the identity.
        run: Computes the tower's output [b, d] from the owner, or a copy of it, and images or tokens.
    """

    owner: Any
    outside: Collection[str] = ()
    projection: str | None = None
    run: Callable[[Any, torch.Tensor], torch.Tensor] = _call

    def head(self) -> torch.nn.Module:
        """Features [b, k] to embeddings [b, d], not normalised. It shares its weights with the tower."""
        if self.projection is None:
            return torch.nn.Identity()
        projection: torch.nn.Module | torch.nn.Parameter = getattr(self.owner, self.projection)
        return projection if isinstance(projection, torch.nn.Module) else _Projection(projection)

    def features(self) -> torch.nn.Module:
        """Images or tokens to features [b, k]. It shares its weights with the tower."""
        if self.projection is None:
            return _Features(self.run, self.owner)
        # These two call their projection. The others leave out one that is None.
        called = isinstance(self.owner, TimmModel | HFTextEncoder)
        replacement = torch.nn.Identity() if called else None
        return _Features(self.run, _with_part(self.owner, self.projection, replacement))

    def trunk_parts(self) -> dict[str, Any]:
        """The parameters, buffers and modules of the trunk, by their name in the owner."""
        return {
            name: part
            for named in (self.owner._parameters, self.owner._buffers, self.owner._modules)
            for name, part in named.items()
            if part is not None and name not in self.outside
        }


def image_layout(module: Any) -> TowerLayout:  # noqa: ANN401 - any model of open_clip
    """The layout of a model's image tower."""
    if isinstance(module, CLIP | CustomTextCLIP):
        return _tower_layout(module.visual)
    return TowerLayout(module, _LOGITS, run=_encode_image)


def text_layout(module: Any) -> TowerLayout:  # noqa: ANN401 - any model of open_clip
    """The layout of a model's text tower."""
    if isinstance(module, CustomTextCLIP):
        return _tower_layout(module.text)
    if isinstance(module, CLIP):
        # The parts of this text tower are attributes of the model itself.
        projection = None if module.text_projection is None else "text_projection"
        return TowerLayout(module, ("visual", "text_projection", *_LOGITS), projection, short_text_features)
    return TowerLayout(module, _LOGITS, run=_encode_text)


def _tower_layout(tower: Any) -> TowerLayout:  # noqa: ANN401 - any tower of open_clip
    if isinstance(tower, TimmModel):
        return TowerLayout(tower, ("head",), "head")
    if isinstance(tower, HFTextEncoder):
        return TowerLayout(tower, ("proj",), "proj")
    projection = next((name for name in _PROJECTIONS if getattr(tower, name, None) is not None), None)
    return TowerLayout(tower) if projection is None else TowerLayout(tower, (projection,), projection)


class _Features(torch.nn.Module):
    """Runs the trunk of a tower."""

    def __init__(self, run: Callable[[Any, torch.Tensor], torch.Tensor], owner: torch.nn.Module) -> None:
        super().__init__()
        self._run = run
        self.owner = owner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._run(self.owner, inputs)


class _Projection(torch.nn.Module):
    """Multiplies by a matrix, as open_clip's transformers do."""

    def __init__(self, matrix_kd: torch.nn.Parameter) -> None:
        super().__init__()
        self.matrix_kd = matrix_kd

    def forward(self, features_bk: torch.Tensor) -> torch.Tensor:
        return features_bk @ self.matrix_kd


def _with_part(module: torch.nn.Module, name: str, replacement: torch.nn.Module | None) -> Any:  # noqa: ANN401
    """A copy that shares all weights, with one part replaced."""
    part = copy.copy(module)
    part._parameters = {key: value for key, value in module._parameters.items() if key != name}
    part._modules = {key: value for key, value in module._modules.items() if key != name}
    setattr(part, name, replacement)
    return part
