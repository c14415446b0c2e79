"""Captions from CSV and TSV: quoted fields, rows with a wrong number of columns, and quotes that are never closed."""

import bz2
import csv
import gzip
import io
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from mode_ray.captions.clean import BAD_RECORD, COLUMN_COUNT, EMPTY, INVALID_UTF8, TOO_LONG, CaptionTable
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

    def test_every_line_of_an_unclosed_quote_is_counted(self, tmp_path: Path) -> None:
        before = [f"caption {row}" for row in range(1, 11)]
        after = [f"and caption {row}" for row in range(20_000)]
        content = "\n".join(["caption", *before, '"no end', *after]).encode()
        result = read(tmp_path, content, quoting="quoted")
        kept = result.table["caption"].to_pylist()
        assert kept[:10] == before
        assert kept[-1] == after[-1], "reading continues after the quote"
        assert list(result.refused) == [BAD_RECORD]
        assert result.examples == {BAD_RECORD: "row 11"}
        assert result.rows_in == 10 + 1 + 20_000

    def test_a_caption_too_long(self, tmp_path: Path) -> None:
        assert read(tmp_path, b"caption\n" + b"x" * 200_000).refused == {TOO_LONG: 1}

    @pytest.mark.parametrize("line", [b"x" * (2 * MAX_LINE_BYTES), b"1," * MAX_LINE_BYTES], ids=len)
    def test_a_row_too_long(self, tmp_path: Path, line: bytes) -> None:
        result = read(tmp_path, b"caption\na cat\n" + line + b"\na dog\n")
        assert result.table["row"].to_pylist() == [1, 3]
        assert (result.refused, result.examples) == ({BAD_RECORD: 1}, {BAD_RECORD: "row 2"})

    def test_a_record_of_very_many_short_lines(self, tmp_path: Path) -> None:
        count = 300_000
        result = read(tmp_path, b"caption\na cat\n" + b'"x\n",' * count + b"\na dog\n")
        assert result.table["caption"].to_pylist()[0] == "a cat"
        assert result.refused[BAD_RECORD] > 200_000, "every line of it, up to where it became too long"


URL = "http://x/1.jpg"


def texts(folder: Path, rows: list[str], name: str = "a.tsv", **settings: Any) -> list[str]:  # noqa: ANN401
    """The captions of lines below a header of the columns url and caption; none may be refused."""
    mark = "," if name.endswith("csv") else "\t"
    content = "\n".join([f"url{mark}caption", *(f"{URL}{mark}{row}" if mark not in row else row for row in rows)])
    result = read(folder, content.encode(), name, **settings)
    assert result.refused == {}
    captions: list[str] = result.table["caption"].to_pylist()
    return captions


class TestQuotationMarks:
    """`auto` takes a mark as a quote only if the columns agree."""

    @pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
    @pytest.mark.parametrize(
        ("row", "caption"),
        [
            ('"a cat"', "a cat"),
            ('"a ""red"" cat"', 'a "red" cat'),
            ('"a cat', '"a cat'),
            ('a cat"', 'a cat"'),
            ('5" pipe', '5" pipe'),
            ('"wild" horses', '"wild" horses'),
            ('"wild" horses and a "train"', '"wild" horses and a "train"'),
            ('"""quoted"""', '"quoted"'),
        ],
    )
    def test_in_one_line(self, tmp_path: Path, name: str, row: str, caption: str) -> None:
        result = texts(tmp_path, ["before", row, "after", "and", "so", "on"], name)
        assert result == ["before", caption, "after", "and", "so", "on"]

    @pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
    @pytest.mark.parametrize("closing", ['the end "', 'the "end"', "no end"])
    def test_a_stray_mark_swallows_no_rows(self, tmp_path: Path, name: str, closing: str) -> None:
        rows = ["before", '"wild horses', *(f"caption {i}" for i in range(200)), closing, "after"]
        assert texts(tmp_path, rows, name) == rows

    def test_stray_marks_in_neighbouring_rows_of_a_tsv(self, tmp_path: Path) -> None:
        rows = ['"wild horses', 'and boats "', '"steam', '"trains']
        assert texts(tmp_path, rows) == rows

    def test_a_stray_mark_before_a_damaged_row_swallows_no_rows(self, tmp_path: Path) -> None:
        content = b'url\tcaption\nu\t"wild horses\ndamaged\nu\tboats "\nu\tafter\n'
        result = read(tmp_path, content, "a.tsv")
        assert result.table["caption"].to_pylist() == ['"wild horses', 'boats "', "after"]
        assert result.refused == {COLUMN_COUNT: 1}

    @pytest.mark.parametrize("mark", [",", "\t"])
    def test_a_stray_mark_in_a_damaged_row_swallows_no_rows(self, tmp_path: Path, mark: str) -> None:
        content = f'url{mark}caption\nu{mark}n{mark}"wild horses\nu{mark}a cat\nu{mark}boats "\n'
        result = read(tmp_path, content.encode(), delimiter=mark)
        assert result.table["caption"].to_pylist() == ["a cat", 'boats "']
        assert result.refused == {COLUMN_COUNT: 1}

    def test_a_caption_of_several_lines_in_the_first_column(self, tmp_path: Path) -> None:
        content = b'caption\turl\n"a cat\nand a dog"\tu\n"one"\tu\n'
        assert read(tmp_path, content, "a.tsv").table["caption"].to_pylist() == ["a cat and a dog", "one"]

    @pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
    @pytest.mark.parametrize("lines", [2, 3, 20])
    def test_a_quoted_caption_of_several_lines(self, tmp_path: Path, name: str, lines: int) -> None:
        row = '"' + "\n".join(["a line"] * lines) + '"'
        assert texts(tmp_path, ["before", row, "after"], name) == ["before", " ".join(["a line"] * lines), "after"]

    def test_a_quoted_caption_whose_lines_look_like_rows_of_a_csv(self, tmp_path: Path) -> None:
        rows = [f'{URL},"a dog', 'and, a cat"', "one", "two", "three"]
        content = "\n".join(["url,caption", rows[0], rows[1], *(f"{URL},{row}" for row in rows[2:])])
        assert read(tmp_path, content.encode()).table["caption"].to_pylist() == ["a dog and, a cat", *rows[2:]]

    def test_quoting_can_be_set(self, tmp_path: Path) -> None:
        rows = ['"a cat"', '"wild horses', 'sailing boats "']
        assert texts(tmp_path, rows, quoting="none") == rows
        assert texts(tmp_path, rows, quoting="quoted") == ["a cat", f"wild horses {URL} sailing boats"]

    @pytest.mark.parametrize("mark", [",", "\t"])
    @pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    def test_random_rows_of_the_csv_module(self, tmp_path: Path, mark: str, quoting: Any) -> None:  # noqa: ANN401
        draw = random.Random(0)
        rows = [["".join(draw.choices('ab ",\t\n', k=draw.randrange(12))) for _ in range(3)] for _ in range(2000)]
        text = io.StringIO()
        csv.writer(text, delimiter=mark, quoting=quoting).writerows([["a", "b", "caption"], *rows])
        result = read(tmp_path, text.getvalue().encode(), "a.csv", quoting="quoted", delimiter=mark)
        expected = [" ".join(row[2].split()) for row in rows]
        assert result.table["caption"].to_pylist() == [caption for caption in expected if caption]
        assert result.refused == {EMPTY: expected.count("")}


class TestColumns:
    def test_without_a_header_columns_have_numbers(self, tmp_path: Path) -> None:
        content = b"a cat\tu1\na dog\tu2\n"
        result = read(tmp_path, content, "cc3m.tsv", header=False, caption_field=0, key_field="1")
        assert result.table.select(["row", "key", "caption"]).to_pydict() == {
            "row": [0, 1],
            "key": ["u1", "u2"],
            "caption": ["a cat", "a dog"],
        }

    @pytest.mark.parametrize("field", [None, "caption", "2", "-1"])
    def test_a_column_that_does_not_exist(self, tmp_path: Path, field: str | None) -> None:
        with pytest.raises(DataError, match=r"captions\.caption_field=.*the number of a column, from 0 to 1"):
            read(tmp_path, b"a cat\tu1\n", "a.tsv", header=False, caption_field=field)

    def test_an_empty_file_without_a_header(self, tmp_path: Path) -> None:
        assert read(tmp_path, b"", "a.tsv", header=False, caption_field="0").rows_in == 0

    @pytest.mark.parametrize(
        ("name", "content", "fix"),
        [
            ("a.csv", b"url\tcaption\nu\ta cat, and more\n", "separated by tabs: set captions.format=tsv"),
            ("a.tsv", b"url,caption\nu,a\n", "separated by commas: set captions.format=csv"),
            ("a.csv", b"url;caption\nu;a\n", "separated by semicolons: set captions.delimiter=';'"),
            ("a.csv", b'"url";"caption"\n"u";"a"\n', "separated by semicolons: set captions.delimiter=';'"),
            ("a.csv", b"a cat\tu\n", "captions.header=false if the file has no header line"),
        ],
    )
    def test_another_delimiter_or_no_header_is_named(
        self, tmp_path: Path, name: str, content: bytes, fix: str
    ) -> None:
        with pytest.raises(DataError, match=fix):
            read(tmp_path, content, name)

    def test_a_delimiter_of_ones_own(self, tmp_path: Path) -> None:
        assert read(tmp_path, b'url;caption\nu;"a; b"\n', delimiter=";").table["caption"].to_pylist() == ["a; b"]
        with pytest.raises(ValidationError, match="cannot separate columns"):
            CaptionsConfig(paths=("x",), delimiter='"')


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


class TestCompression:
    @pytest.mark.parametrize("suffix", COMPRESSIONS)
    def test_by_suffix_and_by_content(self, tmp_path: Path, suffix: str) -> None:
        content = COMPRESSIONS[suffix](b"\xef\xbb\xbfcaption\n" + b"a cat\n" * 5000)
        for name in (f"a.tsv.{suffix}", "b.tsv"):
            assert read(tmp_path, content, name).table.num_rows == 5000
        config = CaptionsConfig(paths=(str(tmp_path),))
        assert len(list_work_units(config)) == 2, "both are found in their directory"

    @pytest.mark.parametrize(
        ("compress", "name"), zip(COMPRESSIONS.values(), ("gzip", "bzip2", "xz", "zstd"), strict=True)
    )
    def test_a_file_that_was_cut(self, tmp_path: Path, compress: Callable[[bytes], bytes], name: str) -> None:
        words = random.Random(0).choices("abcdefgh", k=50_000)
        content = compress(b"caption\n" + "\n".join(words).encode())
        with pytest.raises(DataError, match=f"truncated or damaged {name}"):
            read(tmp_path, content[: len(content) // 2])
        with pytest.raises(DataError, match=f"truncated or damaged {name}"):
            read(tmp_path, content[: len(content) // 2] + bytes(range(100)) + content[len(content) // 2 + 100 :])

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"PK\x03\x04" + bytes(20), "zip data, which cannot be read; unpack it"),
            ("caption\na\n".encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
            (b"caption,n\ra cat,1\ra dog,2\r", "lines end with a carriage return alone; convert them"),
        ],
    )
    def test_what_is_not_read(self, tmp_path: Path, content: bytes, said: str) -> None:
        with pytest.raises(DataError, match=rf"shard\.csv: {said}"):
            read(tmp_path, content)


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
