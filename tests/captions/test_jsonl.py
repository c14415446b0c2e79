"""Captions from JSON Lines: every line is read or counted, and a file of another kind is an error."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mode_ray.captions.clean import BAD_KEY, BAD_LINE, BIG_LINE, INVALID_UTF8, MISSING, TOO_LONG, CaptionTable
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions, read_captions
from mode_ray.captions.text_lines import MAX_LINE_BYTES
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.storage import Location


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind."""
    return Location(str(tmp_path)) if request.param == "local" else Location.parse(request.getfixturevalue("bucket"))


def read(
    folder: Location | Path,
    content: bytes,
    name: str = "shard.jsonl",
    **settings: Any,  # noqa: ANN401  (config fields)
) -> CaptionTable:
    """The captions of a file with this content; they are counted as they are read."""
    root = folder if isinstance(folder, Location) else Location(str(folder))
    (root / name).write_bytes(content)
    config = CaptionsConfig(paths=(f"{root}/{name}",), **settings)
    (work_unit,) = list_work_units(config)
    result = read_captions(work_unit, config)
    assert result.rows_in == result.table.num_rows + sum(result.refused.values())
    assert count_captions(work_unit, config) == result.rows_in
    return result


def lines(*values: object) -> bytes:
    """One JSON value a line."""
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


class TestReading:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL.gz"])
    def test_a_caption_a_line_plain_or_gzipped(self, folder: Location, name: str) -> None:
        content = lines({"caption": " a  cat"}, {"caption": "ein Hündchen", "n": 1})
        table = read(folder, gzip.compress(content) if name.endswith("gz") else content, name).table
        assert table.to_pydict() == {
            "row": [0, 1],
            "caption_index": [0, 0],
            "key": ["0", "1"],
            "caption": ["a cat", "ein Hündchen"],
        }

    def test_lists_of_captions_are_exploded_or_the_first_is_taken(self, tmp_path: Path) -> None:
        content = lines({"text": ["one", "two"]}, {"text": "three"}, {"text": []}, {"text": [None, "four"]})
        every = read(tmp_path, content, caption_field="text", select="all")
        assert every.table["caption"].to_pylist() == ["one", "two", "three", "four"]
        assert every.table["caption_index"].to_pylist() == [0, 1, 0, 1]
        assert (every.rows_in, every.refused) == (6, {MISSING: 2})
        assert read(tmp_path, content, caption_field="text").table["caption"].to_pylist() == ["one", "three"]

    def test_keys_are_texts_or_numbers_or_the_line_number(self, tmp_path: Path) -> None:
        keys: list[object] = ["x", 7, 0.5, None, True, ["a"], "\ud800"]
        result = read(tmp_path, lines(*({"caption": "a", "id": key} for key in keys)), key_field="id")
        assert result.table["key"].to_pylist() == ["x", "7", "0.5", "3", "\\ud800"]
        assert (result.refused, result.examples) == ({BAD_KEY: 2}, {BAD_KEY: "row 4"})

    def test_empty_lines_a_byte_order_mark_and_no_line_end_at_the_end(self, tmp_path: Path) -> None:
        content = b'\xef\xbb\xbf{"caption": "one"}\r\n\r\n  \n{"caption": "two"}'
        table = read(tmp_path, content).table
        assert (table["row"].to_pylist(), table["caption"].to_pylist()) == ([0, 3], ["one", "two"])

    def test_an_empty_file_holds_no_captions(self, tmp_path: Path) -> None:
        result = read(tmp_path, b"")
        assert (result.rows_in, result.table.column_names) == (0, ["row", "caption_index", "key", "caption"])

    def test_more_rows_than_a_block(self, tmp_path: Path) -> None:
        count = 70_000
        result = read(tmp_path, b"".join(b'{"caption": "caption %d"}\n' % row for row in range(count)))
        assert result.table["row"].to_pylist() == list(range(count))
        assert result.table["caption"][-1].as_py() == f"caption {count - 1}"


class TestRefusedLines:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"not json", BAD_LINE),
            (b'["a list"]', BAD_LINE),
            (b'{"caption": "cut', BAD_LINE),
            (b'{"caption": "caf\xe9"}', BAD_LINE),
            (b"[" * 200_000, BAD_LINE),
            (b'{"n": ' + b"9" * 10_000 + b"}", BAD_LINE),
            (b'{"caption": "' + b"x" * (3 * MAX_LINE_BYTES) + b'"}', BIG_LINE),
            (b'{"caption": "' + b"x" * 100_000 + b'"}', TOO_LONG),
            (b'{"caption": "\\ud800"}', INVALID_UTF8),
            (b'{"other": 1}', MISSING),
        ],
        ids=["text", "list", "cut", "latin-1", "nested", "digits", "3 MB", "100 kB", "lone surrogate", "no caption"],
    )
    def test_a_bad_line_is_counted_with_its_row(self, tmp_path: Path, line: bytes, reason: str) -> None:
        result = read(tmp_path, b'{"caption": "a cat"}\n' + line + b'\n{"caption": "a dog"}\n')
        assert result.table["row"].to_pylist() == [0, 2]
        assert (result.refused, result.examples) == ({reason: 1}, {reason: "row 1"})

    def test_a_bad_line_takes_no_key_from_the_others(self, tmp_path: Path) -> None:
        result = read(tmp_path, b"bad\n" + lines({"caption": "a cat", "id": "0"}), key_field="id")
        assert result.refused == {BAD_LINE: 1}


class TestNoSuchFile:
    GOOD = lines(*({"caption": f"caption {row} {row * 7919 % 1009}"} for row in range(2000)))

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.jsonl", bytes(range(256)) * 10, "binary data; a jsonl file must be UTF-8 text"),
            ("a.jsonl", '{"caption": "a"}\n'.encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
            ("a.jsonl", b"<html>\n404\n</html>\n", "not JSON Lines .none of its 3 lines"),
            ("a.jsonl", lines({"text": "a", "url": "b"}), r"no line has a field 'caption'; set .*\['text', 'url'\]"),
            ("a.jsonl.gz", gzip.compress(GOOD)[:-2000], "truncated or damaged gzip"),
            ("a.jsonl.gz", gzip.compress(GOOD)[:-4], "truncated or damaged gzip"),
            ("a.jsonl.gz", gzip.compress(GOOD)[:3000] + b"x" * 500, "truncated or damaged gzip"),
        ],
        ids=["bytes", "utf-16", "html", "other field", "half gzip", "no gzip end", "damaged gzip"],
    )
    def test_it_is_one_sentence_with_the_file(self, tmp_path: Path, name: str, content: bytes, said: str) -> None:
        with pytest.raises(DataError, match=rf"{name}: {said}"):
            read(tmp_path, content, name)

    def test_a_file_that_went_away_after_listing(self, folder: Location) -> None:
        (folder / "a.jsonl").write_bytes(self.GOOD)
        config = CaptionsConfig(paths=(f"{folder}/a.jsonl",))
        (work_unit,) = list_work_units(config)
        (folder / "a.jsonl").delete()
        with pytest.raises(DataError, match=r"a\.jsonl: no such file"):
            read_captions(work_unit, config)

    def test_more_captions_than_a_unit_may_have(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"shard\.jsonl: more than captions\.max_rows_per_unit=1999 captions"):
            read(tmp_path, self.GOOD, max_rows_per_unit=1999)
