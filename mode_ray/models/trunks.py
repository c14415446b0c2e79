"""Divides the towers of a model with locked parts into a trunk, which training does not change, and a head.

The head of a tower that is locked as a whole is the identity.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mode_ray.errors import UsageError
from mode_ray.models.locking import LOCK_FIELD, locked_state, state_hash
from mode_ray.models.towers import TowerLayout, image_layout, text_layout


@dataclass(frozen=True)
class DividedTower:
    """A tower in two parts: the head of the trunk's output is the tower's output.

    Attributes:
        trunk: Images or tokens to features [b, k].
        head: Features to embeddings [b, d], not normalised.
    """

    trunk: Callable[[torch.Tensor], torch.Tensor]
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
    return _divided(image_layout(module), "image"), _divided(text_layout(module), "text")


def _divided(layout: TowerLayout, name: str) -> DividedTower:
    trainable = [
        full
        for full, parameter in layout.owner.named_parameters()
        if parameter.requires_grad and _in_trunk(full, layout)
    ]
    if trainable:
        raise UsageError(
            f"{LOCK_FIELD}.{name}: features can be shared only of a tower whose projection alone is trainable, but "
            f"{trainable[0]} is too; set it to all, or to {{groups: 1}} for a transformer of open_clip"
        )
    if not any(parameter.requires_grad for parameter in layout.head().parameters()):
        layout = replace(layout, outside=(), projection=None)
    return DividedTower(layout.features(), layout.head())


def _in_trunk(parameter: str, layout: TowerLayout) -> bool:
    return parameter.partition(".")[0] not in layout.outside
