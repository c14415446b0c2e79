"""Terms of clusters: words of any script, weighed so that they tell clusters apart."""

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.atlas.terms import MAX_TERMS_PER_CAPTION, TermCounts, count_terms, terms_of


@pytest.mark.parametrize(
    ("caption", "terms"),
    [
        ("A Dog's life, a dog's 1999 & 42!", ["dog's", "life", "1999"]),
        ("Straße ÉCOLE Привет", ["straße", "école", "привет"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("黒い猫 cat", ["黒い", "い猫", "cat"]),
        ("犬", ["犬"]),
        ("\uff26\uff35\uff2c\uff2c width", ["full", "width"]),
        ("snake_case", ["snake", "case"]),
        ("😀 !!! …", []),
    ],
)
def test_terms_of_a_caption(caption: str, terms: list[str]) -> None:
    assert terms_of(caption) == terms


def test_a_term_counts_once_a_caption_and_long_captions_are_bounded() -> None:
    assert terms_of("spam " * 500) == ["spam"]
    assert len(terms_of(" ".join(f"word{number}" for number in range(500)))) == MAX_TERMS_PER_CAPTION
    assert terms_of("x" * 100) == []


def test_counts_by_cluster() -> None:
    table = count_terms(["red dog", "red red cat", "red dog"], np.array([0, 0, 3], np.int32))
    counts = {(row["term"], row["fine"]): row["captions"] for row in table.to_pylist()}
    assert counts == {("red", 0): 2, ("dog", 0): 1, ("cat", 0): 1, ("red", 3): 1, ("dog", 3): 1}


def counts_of(captions_by_cluster: list[list[str]]) -> TermCounts:
    texts = [text for captions in captions_by_cluster for text in captions]
    fine = np.repeat(np.arange(len(captions_by_cluster)), [len(captions) for captions in captions_by_cluster])
    return TermCounts(count_terms(texts, fine), np.bincount(fine, minlength=len(captions_by_cluster)))


def test_weights_are_those_of_the_formula() -> None:
    # 9 words in 2 classes: A = 4.5. In class 0, tf log(1 + A/f): cat 2 log(1 + 4.5/2), red 3 log(1 + 4.5/5), dog 1 ...
    terms = counts_of([["red cat", "red cat", "red"], ["red dog", "red dog"]])
    weights = {"cat": 2 * np.log(1 + 4.5 / 2), "red": 3 * np.log(1 + 4.5 / 5)}
    assert weights["cat"] > weights["red"]
    assert terms.top(np.arange(2), 2, 5) == [["cat", "red"], ["dog", "red"]]


def test_clusters_are_joined_to_experts() -> None:
    terms = counts_of([["tabby cat"] * 3, ["siamese cat"] * 3, ["old train", "train", "train"]])
    assert terms.top(np.array([0, 0, 1]), 2, 1) == [["cat"], ["train"]]


def test_words_of_many_clusters_are_stop_words_in_any_language() -> None:
    topics = [f"topic{letter}" for letter in "abcdefghijklmnop"]
    terms = counts_of([[f"der {topic} und"] * 5 for topic in topics])
    assert set(terms.common) == {"der", "und"}
    assert terms.top(np.arange(16), 16, 3) == [[topic] for topic in topics]


def test_a_stop_word_names_the_cluster_it_is_striking_in() -> None:
    clusters = [[f"topic{number} thing"] * 9 + ["library"] for number in range(15)] + [["library"] * 20]
    terms = counts_of(clusters)
    assert "library" in terms.common
    assert terms.top(np.arange(16), 16, 2)[15] == ["library"]
    assert terms.top(np.arange(16), 16, 2)[0] == ["topic0"]


def test_terms_of_single_captions_are_used_last() -> None:
    terms = counts_of([["boat zyx", "boat qrs", "boat"], ["car"] * 3])
    assert terms.top(np.arange(2), 2, 1)[0] == ["boat"]


def test_empty_clusters_have_no_terms() -> None:
    nothing = count_terms([], np.array([], np.int32))
    assert TermCounts(pa.concat_tables([nothing]), np.zeros(3, np.int64)).top(np.arange(3), 3, 4) == [[], [], []]
