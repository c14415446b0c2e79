"""The fast tokenizer gives the tokens of open_clip's own for any text."""

import pickle
import random
import string
from pathlib import Path

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from mode_ray.models.fast_tokens import FastTokenizer, fast_tokenizer

ODD = [
    "",
    " ",
    "A Photo of a CAT's tail, they'll've",
    "  many\t blanks \n in between ",
    "fish &amp; chips &lt;b&gt;",
    "R&B",
    "<start_of_text> twice <END_OF_TEXT>",
    "caf\u00e9 \u201cquoted\u201d \u2014 na\u00efve \u017fpecial '\u017f",
    "\u00e2\u20ac\u2122 mended by ftfy",
    "\u732b \U0001f600 emoji",
    "\x1b[31mred\x1b[0m \x1c control",
    "12345 67.89e-10 #hash @at $5.00 100% (c) [x] {y} ~`^|\\",
    "'S 'T 'RE ''s ' s",
    "supercalifragilisticexpialidocious",
    "word " * 200,
]


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return open_clip.get_tokenizer("ViT-B-32", context_length=24)


def test_odd_texts_give_the_same_tokens(tokenizer: SimpleTokenizer) -> None:
    fast = fast_tokenizer(tokenizer)
    assert isinstance(fast, FastTokenizer)
    for text in ODD:
        assert torch.equal(fast([text]), tokenizer([text])), text
    assert torch.equal(fast(ODD), tokenizer(ODD))


def test_random_printable_text_gives_the_same_tokens(tokenizer: SimpleTokenizer) -> None:
    chosen = random.Random(0)
    letters = string.ascii_letters + string.digits + string.punctuation + "  '''" + string.ascii_lowercase * 3
    texts = ["".join(chosen.choices(letters, k=chosen.randrange(60))) for _ in range(3_000)]
    assert torch.equal(fast_tokenizer(tokenizer)(texts), tokenizer(texts))


def test_real_captions_give_the_same_tokens(tokenizer: SimpleTokenizer, shared_data: Path) -> None:
    captions = pq.read_table(shared_data / "captions.parquet", columns=["text"])["text"][:200_000:20].to_pylist()
    assert torch.equal(fast_tokenizer(tokenizer)(captions), tokenizer(captions))


def test_words_that_were_forgotten_give_the_same_tokens_again(tokenizer: SimpleTokenizer) -> None:
    forgetful = FastTokenizer(tokenizer, kept=2)
    for _ in range(2):
        assert torch.equal(forgetful(ODD), tokenizer(ODD))


def test_neither_printable_nor_other_texts_fill_the_memory(tokenizer: SimpleTokenizer) -> None:
    forgetful = FastTokenizer(tokenizer, kept=50)
    for number in range(500):
        forgetful([f"wörd{chr(0x4E00 + number)}", f"word{chr(97 + number % 26)}{chr(97 + number // 26)}"])
        assert len(tokenizer.cache) <= 52


def test_it_travels_to_loader_processes(tokenizer: SimpleTokenizer) -> None:
    there = pickle.loads(pickle.dumps(fast_tokenizer(tokenizer)))  # noqa: S301 - our own object
    assert torch.equal(there(ODD), tokenizer(ODD))


def test_tokenizers_that_clean_or_cut_otherwise_stay_as_they_are() -> None:
    for other in (SimpleTokenizer(clean="whitespace"), SimpleTokenizer(reduction_mask="syntax"), str):
        assert fast_tokenizer(other) is other  # type: ignore[arg-type]
