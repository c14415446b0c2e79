"""Towers of loaded models as trunk and head, so that models with equal trunks hold one and run it once.

A trunk is a tower up to its projection. Two trunks are equal if all their weights are: experts trained with
`train.model.lock` have equal trunks, and no config or file has to say so. A tower of a kind that is not known here is
a trunk as a whole.
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel

from mode_ray.models.clip import ClipModel
from mode_ray.models.short_texts import short_text_features
from mode_ray.models.trunks import projection_head, without_part

_LOGITS = ("logit_scale", "logit_bias")
_PROJECTIONS = ("proj", "text_projection")


@dataclass(frozen=True, eq=False)
class Trunk:
    """The identity of a trunk: models with the same object have equal trunks, and share the weights.

    Attributes:
        state: Its weights by name.
        parts: The parameters, buffers and modules that make it up, by name in the module that has them.
    """

    state: dict[str, torch.Tensor]
    parts: dict[str, Any]

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def device(self) -> torch.device:
        """Where it is: any model that has it may have moved it."""
        modules = (part for part in self.parts.values() if isinstance(part, torch.nn.Module))
        return next(parameter.device for module in modules for parameter in module.parameters())


@dataclass(frozen=True, eq=False)
class Tower:
    """A tower of a model in two parts.

    Attributes:
        trunk: Its identity.
        features: Images or tokens to the trunk's features [b, k].
        head: Features to embeddings [b, d], not normalised.
    """

    trunk: Trunk
    features: Callable[[torch.Tensor], torch.Tensor]
    head: torch.nn.Module


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where the trunk of a tower is.

    Attributes:
        owner: The module that has the parts of the trunk, and of the head.
        head: Names of the owner's parts that do not belong to the trunk.
        projection: The one of them that is the tower's head; None if the head is the identity.
    """

    owner: Any
    head: Collection[str] = ()
    projection: str | None = None


@dataclass(eq=False)
class Trunks:
    """The trunks of the models that one process has loaded.

    Attributes:
        known: By what a trunk's output depends on beside its weights.
    """

    known: dict[tuple[str, str], list[Trunk]] = field(default_factory=dict)

    def divide(self, clip: ClipModel) -> tuple[Tower, Tower]:
        """Divide a model's image and text tower. Trunks that are known already replace those of the model."""
        module: Any = clip.module
        # The dimension of the embeddings belongs to the heads.
        model = {name: value for name, value in clip.config["model_cfg"].items() if name != "embed_dim"}
        preprocess = clip.config.get("preprocess_cfg", {})
        image, text = _image_layout(module), _text_layout(module)
        image_trunk = self._shared(image, ("image", json.dumps([model, preprocess], sort_keys=True)))
        text_trunk = self._shared(text, ("text", json.dumps([model, _readable(clip)], sort_keys=True)))
        # Only now: the parts that run are copies that refer to the shared weights.
        return (
            Tower(image_trunk, _image_features(module, image), _head(image)),
            Tower(text_trunk, _text_features(module, text), _head(text)),
        )

    def _shared(self, layout: _Layout, kind: tuple[str, str]) -> Trunk:
        """The known trunk that equals this one, put into the model in its place; or this one, known from now on."""
        own = _trunk(layout)
        known = self.known.setdefault(kind, [])
        for trunk in known:
            if _equal(own.state, trunk.state):
                for name, part in trunk.parts.items():
                    _replace(layout.owner, name, part)
                return trunk
        known.append(own)
        return own


def _image_layout(module: Any) -> _Layout:  # noqa: ANN401 - any model of open_clip
    if not isinstance(module, CLIP | CustomTextCLIP):
        return _Layout(module, _LOGITS)
    return _tower_layout(module.visual)


def _text_layout(module: Any) -> _Layout:  # noqa: ANN401 - as above
    if isinstance(module, CustomTextCLIP):
        return _tower_layout(module.text)
    if isinstance(module, CLIP):
        projection = None if module.text_projection is None else "text_projection"
        return _Layout(module, ("visual", "text_projection", *_LOGITS), projection)
    return _Layout(module, _LOGITS)


def _tower_layout(tower: Any) -> _Layout:  # noqa: ANN401 - any tower of open_clip
    if isinstance(tower, TimmModel):
        return _Layout(tower, ("head",), "head")
    if isinstance(tower, HFTextEncoder):
        return _Layout(tower, ("proj",), "proj")
    projection = next((name for name in _PROJECTIONS if getattr(tower, name, None) is not None), None)
    return _Layout(tower) if projection is None else _Layout(tower, (projection,), projection)


def _image_features(module: Any, layout: _Layout) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ANN401 - as above
    if layout.owner is module:
        return partial(module.encode_image, normalize=False)
    features: Callable[[torch.Tensor], torch.Tensor] = _without_head(layout)
    return features


def _text_features(module: Any, layout: _Layout) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ANN401 - as above
    if isinstance(module, CLIP):
        return partial(short_text_features, _without_head(layout))
    if layout.owner is module:
        return partial(module.encode_text, normalize=False)
    features: Callable[[torch.Tensor], torch.Tensor] = _without_head(layout)
    return features


def _without_head(layout: _Layout) -> Any:  # noqa: ANN401 - as above
    owner, projection = layout.owner, layout.projection
    if projection is None:
        return owner
    # These two call their head; others leave out a projection that is None.
    called = isinstance(owner, TimmModel | HFTextEncoder)
    return without_part(owner, projection, torch.nn.Identity() if called else None)


def _head(layout: _Layout) -> torch.nn.Module:
    if layout.projection is None:
        return torch.nn.Identity()
    return projection_head(getattr(layout.owner, layout.projection))


def _trunk(layout: _Layout) -> Trunk:
    owner: torch.nn.Module = layout.owner
    parts: dict[str, Any] = {
        name: part
        for named in (owner._parameters, owner._buffers, owner._modules)
        for name, part in named.items()
        if part is not None and name not in layout.head
    }
    return Trunk(dict(_tensors(parts)), parts)


def _tensors(parts: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            for own, tensor in (*part.named_parameters(), *part.named_buffers()):
                yield f"{name}.{own}", tensor
        else:
            yield name, part


def _equal(own: dict[str, torch.Tensor], known: dict[str, torch.Tensor]) -> bool:
    return own.keys() == known.keys() and all(
        tensor.dtype == known[name].dtype and torch.equal(tensor.to(known[name].device), known[name])
        for name, tensor in own.items()
    )


def _replace(owner: torch.nn.Module, name: str, part: object) -> None:
    for named in (owner._parameters, owner._buffers, owner._modules):
        if name in named:
            named[name] = part  # type: ignore[assignment]


def _readable(clip: ClipModel) -> dict[str, str]:
    return {name: data.decode(errors="replace") for name, data in clip.text_files.items()}
