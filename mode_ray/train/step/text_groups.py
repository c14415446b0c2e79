"""Captions in groups of similar length, each padded to its own longest caption: the same features for less work.

In a causal text tower a token attends only to earlier tokens, and the features are read at one position, the end of
the caption. Later positions have no effect on the features, so they are not computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch.nn import functional

_POOLS = ("argmax", "eos")


class GroupedTexts(NamedTuple):
    """The captions of a batch, grouped by length.

    Attributes:
        tokens: int64 [t], the rows of all groups, concatenated.
        places_b: int64 [b], the position in `tokens` at which each caption's features are read, in the batch's order.
        shapes: Number of captions and padded length of each group.
    """

    tokens: torch.Tensor
    places_b: torch.Tensor
    shapes: tuple[tuple[int, int], ...]

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both tensors."""
        return self.tokens, self.places_b

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "GroupedTexts":
        """The groups with both tensors changed, for example copied to a device."""
        return GroupedTexts(change(self.tokens), change(self.places_b), self.shapes)

    def to(self, device: torch.device) -> "GroupedTexts":
        """Copy the tensors to a device."""
        return self.changed(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class TextGrouping:
    """How captions are grouped for a causal text tower. It has no part of the model, so loader processes can use it.

    Attributes:
        pool_type: Features are read at the largest token (`argmax`) or at the first `eos_id` (`eos`).
        eos_id: The end token for `eos`.
        groups: Number of groups per batch.
        multiple: Group lengths are rounded up to multiples of this, beyond the context length if necessary.
    """

    pool_type: str
    eos_id: int
    groups: int
    multiple: int

    def padded(self, length: int) -> int:
        """A length, rounded up to a multiple of `multiple`."""
        return -(-length // self.multiple) * self.multiple

    def group(self, texts: torch.Tensor) -> GroupedTexts:
        """Sort captions int64 [b, context] by length, and split them into groups of nearly equal size."""
        texts = texts.cpu()
        ends_b = (texts if self.pool_type == "argmax" else (texts == self.eos_id).int()).argmax(dim=-1)
        order_b = ends_b.argsort(stable=True)
        texts = functional.pad(texts, (0, self.padded(texts.shape[1]) - texts.shape[1]))
        places_b = torch.empty_like(ends_b)
        tokens, shapes, first = [], [], 0
        for members in order_b.tensor_split(min(self.groups, len(order_b))):
            length = self.padded(int(ends_b[members[-1]]) + 1)
            tokens.append(texts[members, :length].flatten())
            places_b[members] = first + torch.arange(len(members)) * length + ends_b[members]
            shapes.append((len(members), length))
            first += len(members) * length
        return GroupedTexts(torch.cat(tokens), places_b, tuple(shapes))


@dataclass(frozen=True)
class CausalText:
    """A causal text tower of open_clip that encodes groups of captions.

    With a `multiple` above 1, for GPUs and compiled models, attention kernels get no mask: open_clip's attention
    modules pass PyTorch's hint that the mask is causal. Positions behind the context length, up to the next multiple,
    have the position embedding zero. No earlier position depends on them.

    Attributes:
        tower: The module with embeddings, transformer and projection.
        grouping: How the captions are grouped.
    """

    tower: Any
    grouping: TextGrouping

    def __post_init__(self) -> None:
        if self.grouping.multiple > 1:
            for block in self.tower.transformer.resblocks:
                attention = getattr(block, "attn", None)
                # open_clip's other attention module, of custom blocks, has no such argument: it gets the mask.
                if isinstance(attention, torch.nn.MultiheadAttention):
                    attention.register_forward_pre_hook(_hint_causal, with_kwargs=True)

    def encode(self, texts: GroupedTexts) -> torch.Tensor:
        """Features [b, d], equal to those of the tower's own `encode_text` except for rounding."""
        tower = self.tower
        dtype = tower.transformer.get_cast_dtype()
        # One look-up for all groups: the gradient of each look-up is as large as the whole table.
        embedded = tower.token_embedding(texts.tokens).to(dtype)
        context = len(tower.positional_embedding)
        positions = functional.pad(tower.positional_embedding, (0, 0, 0, self.grouping.padded(context) - context))
        outputs = []
        for (captions, length), part in zip(
            texts.shapes, embedded.split([captions * length for captions, length in texts.shapes]), strict=True
        ):
            x = part.view(captions, length, -1) + positions[:length].to(dtype)
            outputs.append(tower.transformer(x, attn_mask=self._mask(length)).flatten(0, 1))
        pooled: torch.Tensor = tower.ln_final(torch.cat(outputs)[texts.places_b])
        projection: Any = tower.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
        return pooled

    def _mask(self, length: int) -> torch.Tensor:
        whole: torch.Tensor = self.tower.attn_mask
        if self.grouping.multiple == 1:
            return whole[:length, :length]
        # Slices of the model's mask have the strides of the whole mask, and each would be compiled anew.
        return _causal_mask(length, whole.dtype, whole.device)


@lru_cache(maxsize=64)
def _causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """0 where a position attends, and minus infinity elsewhere, [length, length]."""
    return torch.full((length, length), -torch.inf, dtype=dtype, device=device).triu_(1)


def _hint_causal(
    _module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, named | {"is_causal": named.get("attn_mask") is not None}


def causal_text(module: torch.nn.Module, groups: int, multiple: int) -> CausalText | None:
    """The text tower of an open_clip model, or None if grouping is off or would change the features.

    Arguments are those of `TextGrouping`.
    """
    tower: Any = module if isinstance(module, open_clip.CLIP) else getattr(module, "text", None)
    if isinstance(module, open_clip.CLIP):
        pool_type, eos_id = tower.text_pool_type, tower.text_eos_id
    elif isinstance(tower, TextTransformer) and tower.cls_emb is None and not tower.output_tokens:
        pool_type, eos_id = tower.pool_type, tower.eos_id
    else:
        return None
    if groups == 1 or pool_type not in _POOLS or not _is_causal(tower.attn_mask):
        return None
    return CausalText(tower, TextGrouping(pool_type, eos_id, groups, multiple))


def _is_causal(mask: torch.Tensor | None) -> bool:
    return mask is not None and torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))
