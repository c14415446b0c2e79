"""Captions in groups of similar length, each padded to its own longest caption: the same features for less work.

In a causal text tower a token attends only to earlier tokens, and the features are read at one position, the end of
the caption. Later positions have no effect on the features, so they are not computed.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transformer import TextTransformer

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

    def to(self, device: torch.device) -> "GroupedTexts":
        """Copy the tensors to a device."""
        return GroupedTexts(
            self.tokens.to(device, non_blocking=True), self.places_b.to(device, non_blocking=True), self.shapes
        )


@dataclass(frozen=True)
class CausalText:
    """A causal text tower of open_clip that encodes groups of captions.

    Attributes:
        tower: The module with embeddings, transformer and projection.
        pool_type: Features are read at the largest token (`argmax`) or at the first `eos_id` (`eos`).
        eos_id: The end token for `eos`.
        groups: Number of groups per batch.
        multiple: Group lengths are rounded up to multiples of this.
    """

    tower: Any
    pool_type: str
    eos_id: int
    groups: int
    multiple: int

    def group(self, texts: torch.Tensor) -> GroupedTexts:
        """Sort captions int64 [b, context] by length, and split them into groups of nearly equal size."""
        texts = texts.cpu()
        context = texts.shape[1]
        ends_b = (texts if self.pool_type == "argmax" else (texts == self.eos_id).int()).argmax(dim=-1)
        order_b = ends_b.argsort(stable=True)
        places_b = torch.empty_like(ends_b)
        tokens, shapes, first = [], [], 0
        for members in order_b.tensor_split(min(self.groups, len(order_b))):
            longest = int(ends_b[members[-1]]) + 1
            length = min(context, -(-longest // self.multiple) * self.multiple)
            tokens.append(texts[members, :length].flatten())
            places_b[members] = first + torch.arange(len(members)) * length + ends_b[members]
            shapes.append((len(members), length))
            first += len(members) * length
        return GroupedTexts(torch.cat(tokens), places_b, tuple(shapes))

    def encode(self, texts: GroupedTexts) -> torch.Tensor:
        """Features [b, d], equal to those of the tower's own `encode_text` except for rounding."""
        tower = self.tower
        dtype = tower.transformer.get_cast_dtype()
        # One look-up for all groups: the gradient of each look-up is as large as the whole table.
        embedded = tower.token_embedding(texts.tokens).to(dtype)
        outputs = []
        for (captions, length), part in zip(
            texts.shapes, embedded.split([captions * length for captions, length in texts.shapes]), strict=True
        ):
            x = part.view(captions, length, -1) + tower.positional_embedding[:length].to(dtype)
            outputs.append(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]).flatten(0, 1))
        pooled: torch.Tensor = tower.ln_final(torch.cat(outputs)[texts.places_b])
        projection: Any = tower.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
        return pooled


def causal_text(module: torch.nn.Module, groups: int, multiple: int) -> CausalText | None:
    """The text tower of an open_clip model, or None if grouping is off or would change the features.

    Arguments are those of `CausalText`.
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
    return CausalText(tower, pool_type, eos_id, groups, multiple)


def _is_causal(mask: torch.Tensor | None) -> bool:
    return mask is not None and torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))
