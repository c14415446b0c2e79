"""Cleaning: every caption is kept, or counted under its reason with the place of the first."""

import sys

import numpy as np
import pyarrow as pa
import pytest

from mode_ray.captions.clean import DUPLICATE_KEY, EMPTY, INVALID_UTF8, MISSING, TOO_LONG, CaptionTable, clean

LIMIT = 100


def cleaned(
    *captions: bytes | str | None, keys: list[str] | None = None, rows: list[int] | None = None
) -> CaptionTable:
    """Clean captions, by default one per row."""
    raw = [caption.encode() if isinstance(caption, str) else caption for caption in captions]
    numbers = np.arange(len(raw), dtype=np.int64) if rows is None else np.array(rows, np.int64)
    columns = {
        "row": pa.array(numbers),
        "caption_index": pa.array(np.zeros(len(raw), np.int32)),
        "key": pa.array(keys if keys is not None else [str(row) for row in numbers], pa.string()),
    }
    return clean(columns, pa.array(raw, pa.binary()), LIMIT)


class TestWhiteSpace:
    def test_every_kind_becomes_one_space_and_is_trimmed(self) -> None:
        spaces = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
        assert len(spaces) > 20
        result = cleaned(*(f"{space}a{space}{space}red\t{space} cat{space}" for space in spaces))
        assert result.table["caption"].to_pylist() == ["a red cat"] * len(spaces)

    def test_nothing_else_is_touched(self) -> None:
        caption = "Größe \u200b北京\ufeff e\u0301 👩‍🚀 <b>&amp;</b>"
        assert cleaned(caption).table["caption"].to_pylist() == [caption] == [" ".join(caption.split())]

    @pytest.mark.parametrize("caption", ["", " ", "\n\t", "\u3000\u00a0\u2028"])
    def test_a_caption_of_white_space_alone_is_empty(self, caption: str) -> None:
        result = cleaned("a cat", caption)
        assert (result.refused, result.examples) == ({EMPTY: 1}, {EMPTY: "row 1"})


class TestReasons:
    def test_every_caption_is_kept_or_counted(self) -> None:
        result = cleaned(None, "a cat", "", b"\xff\xfe", "x" * (LIMIT + 1), None, "a dog")
        assert result.table.to_pydict() == {
            "row": [1, 6],
            "caption_index": [0, 0],
            "key": ["1", "6"],
            "caption": ["a cat", "a dog"],
        }
        assert result.rows_in == 7
        assert result.refused == {MISSING: 2, EMPTY: 1, INVALID_UTF8: 1, TOO_LONG: 1}
        assert result.examples == {MISSING: "row 0", EMPTY: "row 2", INVALID_UTF8: "row 3", TOO_LONG: "row 4"}
        assert result.rows_in == result.table.num_rows + sum(result.refused.values())

    def test_the_longest_caption_that_is_allowed(self) -> None:
        assert cleaned("x" * LIMIT).table.num_rows == 1

    def test_a_long_caption_cut_inside_a_character_is_too_long(self) -> None:
        cut = ("é" * LIMIT).encode()[: LIMIT + 1]
        assert cleaned(cut).refused == {TOO_LONG: 1}

    def test_megabytes_are_refused_like_the_rest(self) -> None:
        assert cleaned("word " * 400_000, "a cat").refused == {TOO_LONG: 1}

    def test_no_caption_at_all(self) -> None:
        result = cleaned()
        assert (result.table.num_rows, result.rows_in, dict(result.refused)) == (0, 0, {})


class TestKeys:
    def test_of_several_rows_with_one_key_the_first_is_kept(self) -> None:
        result = cleaned("one", "two", "three", "four", keys=["a", "b", "a", "a"])
        assert result.table["caption"].to_pylist() == ["one", "two"]
        assert (result.refused, result.examples) == ({DUPLICATE_KEY: 2}, {DUPLICATE_KEY: "row 2"})

    def test_several_captions_of_one_row_share_its_key(self) -> None:
        result = cleaned("one", "two", "three", keys=["a", "a", "b"], rows=[0, 0, 1])
        assert result.table.num_rows == 3

    def test_keys_that_differ_only_in_a_final_nul_differ(self) -> None:
        assert cleaned("one", "two", keys=["a", "a\0"]).table.num_rows == 2

    def test_one_huge_key_costs_no_memory_for_the_others(self) -> None:
        rows = 20_000
        result = cleaned(*["a cat"] * rows, keys=["k" * 1_000_000, *(str(row) for row in range(1, rows))])
        assert result.table.num_rows == rows
