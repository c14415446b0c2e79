"""A faster version of open_clip's own tokenizer, with a cache of words, for captions of printable ASCII.

open_clip cleans and splits every caption, which takes longer than decoding a small image. In printable ASCII without
an ampersand, the cleaning by ftfy and html.unescape changes nothing. A caption's tokens are then those of its words,
and a word always has the same tokens. Other captions are tokenized by open_clip. The BPE of Hugging Face's
`tokenizers` gives the same tokens, but took more than twice the time.
"""

import re
from collections.abc import Callable, Sequence

import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

# open_clip's pattern, restricted to lower-case ASCII.
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
_WORDS_KEPT = 1 << 18

TextTokenizer = Callable[[list[str]], torch.Tensor]


def fast_tokenizer(tokenizer: TextTokenizer) -> TextTokenizer:
    """A faster tokenizer with the same results, or the tokenizer itself if there is none."""
    if isinstance(tokenizer, SimpleTokenizer):
        plain = tokenizer.clean_fn is get_clean_fn("lower") and tokenizer.reduction_fn is None
        return FastTokenizer(tokenizer) if plain else tokenizer
    return tokenizer


class FastTokenizer:
    """A tokenizer with the results of an open_clip tokenizer.

    Args:
        tokenizer: open_clip's tokenizer, which lowercases captions and truncates long ones.
        kept: Maximum number of cached words; when it is exceeded, this cache and open_clip's own are cleared.
    """

    def __init__(self, tokenizer: SimpleTokenizer, kept: int = _WORDS_KEPT) -> None:
        self._slow = tokenizer
        self._kept = kept
        self._special = {tokenizer.decoder[token]: tokenizer.decoder[token] for token in tokenizer.all_special_ids}
        self._tokens: dict[str, tuple[int, ...]] = {}

    def __call__(self, captions: Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Tokens, int64 [b, context]."""
        context = context_length or self._slow.context_length
        rows = []
        for caption in captions:
            ids = [self._slow.sot_token_id, *self._encode(caption)[: context - 2], self._slow.eot_token_id]
            rows.append(ids + [0] * (context - len(ids)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), context)

    def _encode(self, caption: str) -> list[int]:
        if not caption.isascii() or not caption.isprintable() or "&" in caption:
            return self._encode_slowly(caption)
        lowered = caption.lower()
        if any(special in lowered for special in self._special):
            return self._encode_slowly(caption)
        ids: list[int] = []
        for word in _WORDS.findall(lowered):
            ids += self._tokens.get(word) or self._tokenize(word)
        return ids

    def _encode_slowly(self, caption: str) -> list[int]:
        self._clear_if_full()
        return list(self._slow.encode(caption))

    def _clear_if_full(self) -> None:
        if max(len(self._tokens), len(self._slow.cache)) >= self._kept:
            self._tokens.clear()
            self._slow.cache = dict(self._special)

    def _tokenize(self, word: str) -> tuple[int, ...]:
        self._clear_if_full()
        tokens = tuple(self._slow.encoder[part] for part in self._slow.bpe(word).split(" "))
        self._tokens[word] = tokens
        return tokens
