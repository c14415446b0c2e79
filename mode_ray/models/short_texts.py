"""Encodes texts without their padding: the features of open_clip's `encode_text`, at a fraction of its time."""

from typing import Any, cast

import open_clip
import torch
from torch.func import functional_call


def encode_short_texts(module: torch.nn.Module, tokens_bt: torch.Tensor) -> torch.Tensor:
    """Unit-norm features of tokenized texts, [b, d].

    In a causal text tower, no position depends on a later one. The feature of a text is that of its end token, so the
    padding behind the longest text of a batch has no influence. A label of 8 tokens in a context of 77 then takes
    about a tenth of the time. Other towers encode the padding, too.

    Args:
        module: The open_clip model.
        tokens_bt: int64 [b, context], padded at the end, on the model's device.
    """
    length = _needed_length(module, tokens_bt)
    if length == tokens_bt.shape[1]:
        return cast("torch.Tensor", module.encode_text(tokens_bt, normalize=True))  # type: ignore[operator]
    # open_clip adds all positions and the whole mask to what it is given: it gets those of the first positions.
    clip = cast(Any, module)
    shortened = {
        "positional_embedding": clip.positional_embedding[:length],
        "attn_mask": clip.attn_mask[:length, :length],
    }
    found = functional_call(module, shortened, kwargs={"text": tokens_bt[:, :length]}, tie_weights=False)
    return cast("torch.Tensor", found["text_features"] if isinstance(found, dict) else found[1])


def _needed_length(module: torch.nn.Module, tokens_bt: torch.Tensor) -> int:
    """The tokens up to the last end token, which is found as by `open_clip.transformer.text_global_pool`."""
    whole = tokens_bt.shape[1]
    if not isinstance(module, open_clip.CLIP) or module.attn_mask is None or not tokens_bt.numel():
        return whole
    if module.text_pool_type == "argmax":
        return int(tokens_bt.argmax(dim=-1).max()) + 1
    if module.text_pool_type == "eos":
        return int((tokens_bt == module.text_eos_id).int().argmax(dim=-1).max()) + 1
    return whole
