"""Finds equal trunks of loaded models, so that these models hold one trunk and run it once.

Two trunks are equal if all their weights are equal. Experts trained with `train.model.lock` have equal trunks, and no
config or file has to state it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mode_ray.models.clip import ClipModel
from mode_ray.models.towers import TowerLayout, image_layout, text_layout


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
        image, text = image_layout(module), text_layout(module)
        image_trunk = self._shared(image, ("image", json.dumps([model, preprocess], sort_keys=True)))
        text_trunk = self._shared(text, ("text", json.dumps([model, _readable(clip)], sort_keys=True)))
        # Only now: the parts that run are copies that refer to the shared weights.
        return (
            Tower(image_trunk, image.features(), image.head()),
            Tower(text_trunk, text.features(), text.head()),
        )

    def _shared(self, layout: TowerLayout, kind: tuple[str, str]) -> Trunk:
        """The known trunk that equals this one, put into the model in its place; or this one, known from now on."""
        parts = layout.trunk_parts()
        own = Trunk(dict(_tensors(parts)), parts)
        known = self.known.setdefault(kind, [])
        for trunk in known:
            if _equal(own.state, trunk.state):
                for name, part in trunk.parts.items():
                    _replace(layout.owner, name, part)
                return trunk
        known.append(own)
        return own


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
