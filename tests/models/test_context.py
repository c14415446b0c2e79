"""A text is cut where it needs more tokens than the context of its model."""

import open_clip
import pytest

from mode_ray.models.context import TextContext
from mode_ray.models.fast_tokens import fast_tokenizer

CONTEXT = 8  # a start and an end token, and six words


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("words", "cut"), [(0, False), (1, False), (5, False), (6, False), (7, True), (50, True)])
def test_only_longer_texts_are_cut(words: int, cut: bool, fast: bool) -> None:
    plain = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)
    context = TextContext(fast_tokenizer(plain) if fast else plain, CONTEXT)  # type: ignore[arg-type]
    assert context.are_cut(["a cat", "cat " * words, "\u732b"]) == [False, cut, False]
