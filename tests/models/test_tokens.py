"""The cached tokenizer gives what the tokenizer gives, and remembers no more than it may."""

import numpy as np
import pytest
import torch

from mode_ray.models.tokens import CachedTokenizer


class Letters:
    """A tokenizer of letters that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        return torch.tensor([[ord(letter) for letter in text.ljust(4)] for text in texts])


@pytest.fixture
def letters() -> Letters:
    return Letters()


def test_tokens_are_the_tokenizers(letters: Letters) -> None:
    cached = CachedTokenizer(letters, kept=10)
    generator = np.random.default_rng(0)
    for _ in range(50):
        texts = [f"{number}" for number in generator.integers(0, 30, 12)]
        tokens = cached(texts)
        assert (tokens.dtype, tokens.shape) == (torch.int64, (12, 4))
        assert torch.equal(tokens, Letters()(texts))


def test_a_caption_is_tokenised_once_while_it_is_remembered(letters: Letters) -> None:
    cached = CachedTokenizer(letters, kept=3)
    for texts in (["a", "b", "a"], ["b", "c"], ["a"]):
        cached(texts)
    assert letters.asked == ["a", "b", "c"]


def test_what_was_not_asked_for_the_longest_is_forgotten(letters: Letters) -> None:
    cached = CachedTokenizer(letters, kept=2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        cached(texts)
    assert letters.asked == ["a", "b", "c", "b"]


def test_a_batch_larger_than_the_memory_goes_around_it(letters: Letters) -> None:
    cached = CachedTokenizer(letters, kept=2)
    assert torch.equal(cached(["a", "b", "c"]), Letters()(["a", "b", "c"]))
    assert letters.asked == ["a", "b", "c"]
