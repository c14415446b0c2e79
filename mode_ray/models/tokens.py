"""A bounded cache of the tokens of captions, in front of a model's tokenizer."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

_CAPTIONS_KEPT = 65_536  # 20 MB with 77 tokens per caption


class CachedTokenizer:
    """A tokenizer with a cache of the most recently used captions.

    Captions of small data sets are repeated in every epoch, and open_clip's tokenizer takes longer for a caption than
    the decoder for a small image.

    Args:
        tokenizer: Texts to int64 [b, context]; each row depends only on its text.
        kept: Maximum number of cached captions.
    """

    def __init__(self, tokenizer: Callable[[list[str]], torch.Tensor], kept: int = _CAPTIONS_KEPT) -> None:
        self._tokenizer = tokenizer
        self._kept = kept
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._tokens: npt.NDArray[np.int32] | None = None

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Tokens, int64 [b, context]."""
        distinct = list(dict.fromkeys(captions))
        if len(distinct) > self._kept:
            return self._tokenizer(list(captions))
        unknown = []
        for caption in distinct:
            if caption in self._rows:
                self._rows.move_to_end(caption)  # so that adding the unknown captions does not evict this one
            else:
                unknown.append(caption)
        tokens = self._add(unknown) if unknown or self._tokens is None else self._tokens
        return torch.from_numpy(tokens[[self._rows[caption] for caption in captions]]).long()

    def _add(self, captions: list[str]) -> npt.NDArray[np.int32]:
        """Tokenize captions into new rows of the table, or into the rows of the least recently used captions."""
        tokens = self._tokenizer(captions).numpy()
        if self._tokens is None:
            self._tokens = np.empty((self._kept, tokens.shape[1]), np.int32)
        for caption, row_tokens in zip(captions, tokens, strict=True):
            row = len(self._rows) if len(self._rows) < self._kept else self._rows.popitem(last=False)[1]
            self._rows[caption] = row
            self._tokens[row] = row_tokens
        return self._tokens
