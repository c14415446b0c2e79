"""Captions from CSV and TSV: quoted fields, rows with a wrong number of columns, and quotes that are never closed."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest

from mode_ray.captions.clean import BAD_RECORD, COLUMN_COUNT, EMPTY, INVALID_UTF8, CaptionTable
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions, read_captions
from mode_ray.captions.text_lines import MAX_LINE_BYTES
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.storage import Location


def read(folder: Path, content: bytes, name: str = "shard.csv", **settings: Any) -> CaptionTable:  # noqa: ANN401
    """The captions of a file with this content; they are counted as they are read."""
    (folder / name).write_bytes(content)
    config = CaptionsConfig(paths=(str(folder / name),), **settings)
    (work_unit,) = list_work_units(config)
    result = read_captions(work_unit, config)
    assert result.rows_in == result.table.num_rows + sum(result.refused.values())
    assert count_captions(work_unit, config) == result.rows_in
    return result


class TestReading:
    @pytest.mark.parametrize(
        ("name", "mark"), [("a.csv", ","), ("a.tsv", "\t"), ("a.tsv.gz", "\t"), ("a.csv.gz", ",")]
    )
    def test_what_the_csv_module_writes(self, tmp_path: Path, name: str, mark: str) -> None:
        captions = ["a cat", 'a "red" cat', "one, two\tthree", "over\r\ntwo lines", "ein Hündchen"]
        text = io.StringIO()
        writer = csv.writer(text, delimiter=mark)
        writer.writerows([["url", "caption"], *(["u", caption] for caption in captions)])
        content = text.getvalue().encode()
        result = read(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)
        assert result.table["caption"].to_pylist() == [" ".join(caption.split()) for caption in captions]
        assert result.table["row"].to_pylist() == [1, 2, 3, 4, 6], "the line at which each begins"
        assert result.refused == {}

    def test_other_columns_for_caption_and_key(self, tmp_path: Path) -> None:
        content = b"\xef\xbb\xbfid,text\nx,one\n,two\nz,\n"
        result = read(tmp_path, content, caption_field="text", key_field="id")
        assert result.table.select(["key", "caption"]).to_pydict() == {"key": ["x", "2"], "caption": ["one", "two"]}
        assert (result.refused, result.examples) == ({EMPTY: 1}, {EMPTY: "row 3"})

    def test_a_header_alone(self, tmp_path: Path) -> None:
        assert read(tmp_path, b"caption\n").rows_in == 0

    def test_on_s3(self, bucket: str) -> None:
        (Location.parse(bucket) / "a.csv").write_bytes(b"caption\na cat\n")
        config = CaptionsConfig(paths=(f"{bucket}/*.csv",))
        (work_unit,) = list_work_units(config)
        assert read_captions(work_unit, config).table["caption"].to_pylist() == ["a cat"]


class TestRefusedRows:
    def test_a_wrong_number_of_columns(self, tmp_path: Path) -> None:
        result = read(tmp_path, b"caption,n\none,1\ntwo\n\nthree,3,3\nfour,4\n")
        assert result.table["caption"].to_pylist() == ["one", "four"]
        assert (result.refused, result.examples) == ({COLUMN_COUNT: 2}, {COLUMN_COUNT: "row 2"})

    def test_a_caption_that_is_not_utf8(self, tmp_path: Path) -> None:
        result = read(tmp_path, b"caption,n\none,1\ncaf\xe9,2\n")
        assert (result.refused, result.examples) == ({INVALID_UTF8: 1}, {INVALID_UTF8: "row 2"})

    def test_every_line_after_an_unclosed_quote_is_counted(self, tmp_path: Path) -> None:
        before = [f"caption {row}" for row in range(1, 11)]
        after = [f"and caption {row}" for row in range(20_000)]
        content = "\n".join(["caption", *before, '"no end', *after]).encode()
        result = read(tmp_path, content)
        kept = result.table["caption"].to_pylist()
        assert kept[:10] == before
        assert kept[-1] == after[-1], "reading continues after the quote"
        assert list(result.refused) == [BAD_RECORD]
        assert result.examples == {BAD_RECORD: "row 11"}
        assert result.rows_in == 10 + 1 + 20_000

    @pytest.mark.parametrize("line", [b"x" * 200_000, b"x" * (2 * MAX_LINE_BYTES), b"1," * MAX_LINE_BYTES], ids=len)
    def test_a_row_too_long(self, tmp_path: Path, line: bytes) -> None:
        result = read(tmp_path, b"caption\na cat\n" + line + b"\na dog\n")
        assert result.table["row"].to_pylist() == [1, 3]
        assert (result.refused, result.examples) == ({BAD_RECORD: 1}, {BAD_RECORD: "row 2"})

    def test_a_record_of_very_many_short_lines(self, tmp_path: Path) -> None:
        count = 300_000
        result = read(tmp_path, b"caption\na cat\n" + b'"x\n",' * count + b"\na dog\n")
        assert result.table["caption"].to_pylist()[0] == "a cat"
        assert result.refused[BAD_RECORD] > 200_000, "every line of it, up to where it became too long"


class TestNoSuchFile:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "no header line"),
            (bytes(range(256)) * 10, "binary data; a csv file must be UTF-8 text"),
            (b"<html>\n404\n", r"no column 'caption'; set captions\.caption_field to one of \['<html>'\]"),
            (b"text,url\na,b\n", r"no column 'caption'; set captions\.caption_field to one of \['text', 'url'\]"),
            (b"caption,caption\na,b\n", "column 'caption' occurs 2 times in the header"),
            (gzip.compress(b"caption\n" + bytes(range(32, 127)) * 99)[:-9], "truncated or damaged gzip"),
        ],
        ids=["empty", "bytes", "html", "other columns", "twice", "gzip"],
    )
    def test_it_is_one_sentence_with_the_file(self, tmp_path: Path, content: bytes, said: str) -> None:
        with pytest.raises(DataError, match=rf"shard\.csv: {said}"):
            read(tmp_path, content)

    def test_the_key_column_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no column 'id'; set captions\.key_field to one of \['caption'\]"):
            read(tmp_path, b"caption\na\n", key_field="id")
