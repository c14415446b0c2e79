"""Captions from WebDataset tars: samples, offsets, and each way a tar can be wrong."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset

from mode_ray.captions.clean import (
    BAD_JSON,
    BIG_JSON,
    DUPLICATE_KEY,
    EMPTY,
    INVALID_UTF8,
    MISSING,
    NO_IMAGE,
    TOO_LONG,
    CaptionTable,
)
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions, read_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.storage import Location

IMAGE = b"\x89PNG not decoded here" * 40


def tar_bytes(*members: tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of these members, without padding to whole records."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        end = archive.offset
    return buffer.getvalue()[: end + 2 * tarfile.BLOCKSIZE]


def pair(key: str, caption: bytes | str, suffix: str = "txt") -> Sequence[tuple[str, bytes]]:
    """An image and its caption."""
    return [(f"{key}.png", IMAGE), (f"{key}.{suffix}", caption.encode() if isinstance(caption, str) else caption)]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind: the one is read by seeking, the other as a stream."""
    return Location(str(tmp_path)) if request.param == "local" else Location.parse(request.getfixturevalue("bucket"))


def read(folder: Location, content: bytes, **settings: Any) -> CaptionTable:  # noqa: ANN401  (config fields)
    """The captions of a tar with this content."""
    (folder / "shard.tar").write_bytes(content)
    config = CaptionsConfig(paths=(f"{folder}/*.tar",), **settings)
    (work_unit,) = list_work_units(config)
    result = read_captions(work_unit, config)
    assert count_captions(work_unit, config) == result.rows_in
    return result


class TestSamples:
    def test_keys_captions_and_positions_of_members(self, folder: Location) -> None:
        content = tar_bytes(*pair("0001", " a  cat\n"), ("0001.json", b"{}"), *pair("deep/0002", "ein Hündchen"))
        table = read(folder, content).table
        assert table["row"].to_pylist() == [0, 1]
        assert table["key"].to_pylist() == ["0001", "deep/0002"]
        assert table["caption"].to_pylist() == ["a cat", "ein Hündchen"]
        for row in table.to_pylist():
            assert content[row["image_offset"] :][: row["image_bytes"]] == IMAGE
            stored = content[row["caption_offset"] :][: row["caption_bytes"]].decode()
            assert " ".join(stored.split()) == row["caption"]

    def test_every_sample_the_webdataset_package_sees(self, tmp_path: Path) -> None:
        with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
            for number in range(5):
                writer.write(
                    {"__key__": f"k{number}", "jpg": IMAGE, "txt": f"caption {number}", "json": {"n": number}}
                )
        config = CaptionsConfig(paths=(str(tmp_path),))
        table = read_captions(list_work_units(config)[0], config).table
        theirs = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False, empty_check=False))
        assert table["key"].to_pylist() == [sample["__key__"] for sample in theirs]
        assert table["caption"].to_pylist() == [sample["txt"].decode() for sample in theirs]

    def test_long_names_directories_and_any_order_of_the_members(self, folder: Location) -> None:
        name = "d" * 150 + "/" + "k" * 150
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            content = tar_bytes(*reversed(pair(name, "a cat")), *pair("b", "a dog"), form=form)
            table = read(folder, content).table
            assert table["key"].to_pylist() == [name, "b"]
            assert content[table["image_offset"][0].as_py() :].startswith(IMAGE)

    def test_captions_from_a_field_of_the_json_member(self, folder: Location) -> None:
        values = [{"text": "a cat"}, {"text": ["one", "two"]}, {"other": 1}, {"text": []}, {"text": 5}, {"text": ""}]
        content = tar_bytes(*(m for n, v in enumerate(values) for m in pair(str(n), json.dumps(v), "json")))
        every = read(folder, content, caption_field="text", select="all")
        assert every.table.select(["row", "caption_index", "caption"]).to_pydict() == {
            "row": [0, 1, 1],
            "caption_index": [0, 0, 1],
            "caption": ["a cat", "one", "two"],
        }
        assert every.refused == {MISSING: 3, EMPTY: 1}
        assert every.rows_in == 7
        first = read(folder, content, caption_field="text")
        assert first.table["caption"].to_pylist() == ["a cat", "one"]

    def test_an_archive_of_nothing(self, folder: Location) -> None:
        result = read(folder, bytes(1024))
        assert (result.table.num_rows, result.rows_in) == (0, 0)
        assert {"image_offset", "caption_bytes"} <= set(result.table.column_names)


class TestRefusedCaptions:
    def test_each_with_its_reason_and_its_sample(self, folder: Location) -> None:
        content = tar_bytes(
            *pair("0", "a cat"),
            *pair("1", ""),
            *pair("2", b"caf\xe9"),
            *pair("3", "ä" * 1_000_000),
            ("4.txt", b"no picture"),
            ("5.png", IMAGE),
            *pair("6", "a dog"),
        )
        result = read(folder, content)
        assert result.table["caption"].to_pylist() == ["a cat", "a dog"]
        assert result.refused == {EMPTY: 1, INVALID_UTF8: 1, TOO_LONG: 1, NO_IMAGE: 1, MISSING: 1}
        assert result.examples == {
            EMPTY: "row 1",
            INVALID_UTF8: "row 2",
            TOO_LONG: "row 3",
            NO_IMAGE: "row 4 (4: .txt)",
            MISSING: "row 5 (5: .png)",
        }
        assert result.rows_in == 7

    @pytest.mark.parametrize(
        ("member", "reason"),
        [
            (b"not json", BAD_JSON),
            (b'["a list"]', BAD_JSON),
            (b'{"text": "caf\xe9"}', BAD_JSON),
            (b"[" * 200_000, BAD_JSON),
            (b"", BAD_JSON),
            (json.dumps({"text": "x" * 2_000_000}).encode(), BIG_JSON),
            (json.dumps({"text": "x" * 100_000}).encode(), TOO_LONG),
            (b'{"text": "\\ud800"}', INVALID_UTF8),
        ],
        ids=["text", "list", "latin-1", "nested", "empty", "2 MB", "100 kB", "lone surrogate"],
    )
    def test_json_members(self, tmp_path: Path, member: bytes, reason: str) -> None:
        content = tar_bytes(*pair("0", '{"text": "a cat"}', "json"), *pair("1", member, "json"))
        result = read(Location(str(tmp_path)), content, caption_field="text")
        assert result.table["caption"].to_pylist() == ["a cat"]
        assert result.refused == {reason: 1}
        assert result.examples[reason].startswith("row 1")

    def test_the_same_key_next_to_itself_and_further_on(self, folder: Location) -> None:
        content = tar_bytes(*pair("a", "one"), *pair("a", "two"), *pair("b", "three"), *pair("a", "four"))
        result = read(folder, content)
        assert result.table["caption"].to_pylist() == ["one", "three"]
        assert (result.refused, result.examples) == ({DUPLICATE_KEY: 2}, {DUPLICATE_KEY: "row 1"})

    def test_a_name_that_is_not_utf8_is_escaped(self, tmp_path: Path) -> None:
        content = bytearray(tar_bytes(*pair("caf?", "a cat")))
        for start in (content.find(b"caf?.png"), content.find(b"caf?.txt")):
            content[start + 3] = 0xE9
            header = tarfile.TarInfo.frombuf  # the checksum counts the changed byte
            total = 256 + sum(content[start : start + 148]) + sum(content[start + 156 : start + 512])
            content[start + 148 : start + 156] = b"%06o\0 " % total
            assert header(bytes(content[start : start + 512]), "utf-8", "surrogateescape").name
        assert read(Location(str(tmp_path)), bytes(content)).table["key"].to_pylist() == ["caf\\xe9"]


class TestDamage:
    TAR = tar_bytes(*pair("a", "one"), *pair("b", "two"))
    IMAGE_BLOCKS = -(-len(IMAGE) // 512) * 512
    SECOND_SAMPLE = 512 + IMAGE_BLOCKS + 512 + 512

    @pytest.mark.parametrize(
        "size",
        [
            pytest.param(512 + 100, id="inside the first image"),
            pytest.param(SECOND_SAMPLE - 512 + 2, id="inside a caption"),
            pytest.param(SECOND_SAMPLE, id="between two samples"),
            pytest.param(SECOND_SAMPLE + 512, id="after a header"),
            pytest.param(SECOND_SAMPLE + 200, id="inside a header"),
            pytest.param(SECOND_SAMPLE + 512 + 700, id="inside the last image"),
            pytest.param(SECOND_SAMPLE + 512 + IMAGE_BLOCKS, id="between two members"),
            pytest.param(len(TAR) - 1024, id="no end marker"),
            pytest.param(len(TAR) - 1025, id="inside the last padding"),
        ],
    )
    def test_a_tar_that_was_cut(self, tmp_path: Path, size: int) -> None:
        with pytest.raises(DataError, match=r"shard\.tar: truncated or damaged tar .*replace or remove it"):
            read(Location(str(tmp_path)), self.TAR[:size])

    def test_one_that_was_cut_on_s3(self, bucket: str) -> None:
        for size in (612, self.SECOND_SAMPLE, self.SECOND_SAMPLE + 1212, len(self.TAR) - 1024):
            with pytest.raises(DataError, match=r"shard\.tar: truncated or damaged tar .*replace or remove it"):
                read(Location.parse(bucket), self.TAR[:size])

    def test_a_whole_tar_for_comparison(self, folder: Location) -> None:
        assert read(folder, self.TAR).table.num_rows == 2

    def test_a_damaged_header_is_not_taken_for_the_end(self, folder: Location) -> None:
        content = bytearray(self.TAR)
        content[self.SECOND_SAMPLE + 20] ^= 0xFF
        with pytest.raises(DataError, match=r"shard\.tar: truncated or damaged tar"):
            read(folder, bytes(content))

    @pytest.mark.parametrize("content", [b"", b"x", b"<html>404</html>" * 100, b"PAR1" * 500])
    def test_what_is_no_tar(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(DataError, match=r"shard\.tar: not a readable tar .*replace or remove it"):
            read(Location(str(tmp_path)), content)

    def test_a_tar_that_went_away_after_listing(self, folder: Location) -> None:
        (folder / "shard.tar").write_bytes(self.TAR)
        config = CaptionsConfig(paths=(f"{folder}/*.tar",))
        (work_unit,) = list_work_units(config)
        (folder / "shard.tar").delete()
        with pytest.raises(DataError, match=r"shard\.tar: no such file"):
            read_captions(work_unit, config)
