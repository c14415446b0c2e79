"""Tokens of captions that come again: a bounded memory before a model's tokenizer."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

_CAPTIONS_KEPT = 65_536  # some 50 MB with 77 tokens each


class CachedTokenizer:
    """A tokenizer that remembers the captions asked for last.

    Captions of small data sets come again in every epoch, and open_clip's tokenizer takes longer over a caption than
    the decoder over a small image.

    Args:
        tokenizer: Texts to int64 [b, context]; each row a function of its text.
        kept: Captions to remember.
    """

    def __init__(self, tokenizer: Callable[[list[str]], torch.Tensor], kept: int = _CAPTIONS_KEPT) -> None:
        self._tokenizer = tokenizer
        self._kept = kept
        self._rows: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Tokens, int64 [b, context]."""
        rows = self._rows
        unknown = [caption for caption in dict.fromkeys(captions) if caption not in rows]
        if unknown:
            # Cloned row by row: a view would keep its whole batch in memory. Half as many bytes hold any token.
            tokens = self._tokenizer(unknown).to(torch.int32)
            rows.update(zip(unknown, (row.clone() for row in tokens), strict=True))
        texts = torch.stack([rows[caption] for caption in captions]).long()
        for caption in captions:
            rows.move_to_end(caption)
        while len(rows) > self._kept:
            rows.popitem(last=False)
        return texts
