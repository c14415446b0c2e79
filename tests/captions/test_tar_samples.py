"""Tars as other programs write them: each is read rightly, or refused with the key and the suffix."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions, read_captions
from mode_ray.captions.tar_samples import IMAGE_SUFFIXES, UNREAD_IMAGE_SUFFIXES
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.pairs.images import decode_image
from mode_ray.storage import Location

IMAGE = b"\x89PNG not decoded here" * 40
Members = Sequence[tuple[str, bytes]]


def colour(number: int) -> tuple[int, int, int]:
    """The colour of the picture with a number."""
    return number * 20 % 256, 255 - number * 20 % 256, 90


def picture(number: int, form: str) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour(number)).save(buffer, form)
    return buffer.getvalue()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """The header of a member."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of contents, and of headers without contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
            else:
                archive.addfile(member(one[0], len(one[1])), io.BytesIO(one[1]))
    return buffer.getvalue()


def pairs(*keys: str, suffix: str = "txt", caption: Callable[[str], str] = "caption of {}".format) -> Members:
    """Images and their captions."""
    return [one for key in keys for one in ((f"{key}.png", IMAGE), (f"{key}.{suffix}", caption(key).encode()))]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind: the one is read by seeking, the other as a stream."""
    return Location(str(tmp_path)) if request.param == "local" else Location.parse(request.getfixturevalue("bucket"))


def read(folder: Location, content: bytes, caption_field: str | None = None) -> CaptionTable:
    """The captions of a tar with this content."""
    (folder / "0.tar").write_bytes(content)
    config = CaptionsConfig(paths=(f"{folder}/0.tar",), caption_field=caption_field)
    (work_unit,) = list_work_units(config)
    result = read_captions(work_unit, config)
    assert count_captions(work_unit, config) == result.rows_in
    return result


def captions_by_key(result: CaptionTable) -> dict[str, str]:
    return dict(zip(result.table["key"].to_pylist(), result.table["caption"].to_pylist(), strict=True))


class TestSkippedMembers:
    def test_the_attributes_that_macos_stores(self, folder: Location) -> None:
        double = struct.pack(">II16xH", 0x00051607, 0x00020000, 0) + bytes(120)
        members: list[tuple[str, bytes] | tarfile.TarInfo] = [
            member("./", kind=tarfile.DIRTYPE),
            ("./.DS_Store", b"\0\0\0\1Bud1"),
        ]
        for name, content in pairs("0", "1", "2"):
            members += [(f"./._{name}", double), (f"./{name}", content), (f"./__MACOSX/._{name}", double)]
        result = read(folder, tar_of(*members, form=tarfile.PAX_FORMAT))
        assert captions_by_key(result) == {f"./{key}": f"caption of {key}" for key in "012"}
        assert result.rows_in == 3

    def test_members_without_a_suffix(self, folder: Location) -> None:
        image, text = pairs("0")
        result = read(folder, tar_of(("README", b"x"), image, ("LICENSE", b"x"), text, ("d/.gitignore", b"x")))
        assert captions_by_key(result) == {"0": "caption of 0"}


class TestSuffixes:
    def test_images_of_every_suffix_that_is_read_decode_to_their_own_colour(self, tmp_path: Path) -> None:
        forms = {"jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "TIFF": "TIFF", "avif": "AVIF", "jp2": "JPEG2000"}
        forms |= {"j2k": "JPEG2000", "ppm": "PPM", "PNM": "PPM", "apng": "PNG", "bmp": "BMP", "webp": "WEBP"}
        members: list[tuple[str, bytes]] = []
        for number, (suffix, form) in enumerate(forms.items()):
            members += [(f"{number}.{suffix}", picture(number, form)), (f"{number}.txt", str(number).encode())]
        content = tar_of(*members)
        result = read(Location(str(tmp_path)), content)
        assert result.table["caption"].to_pylist() == [str(number) for number in range(len(forms))]
        for number, row in enumerate(result.table.to_pylist()):
            image = decode_image(content[row["image_offset"] :][: row["image_bytes"]], 10_000, row["key"])
            assert image.getpixel((16, 16)) == pytest.approx(colour(number), abs=6)

    def test_images_that_are_not_read_are_counted_by_suffix(self, folder: Location) -> None:
        members = [("0.heic", IMAGE), ("0.txt", b"x"), ("1.SVG", IMAGE), ("1.txt", b"x"), ("2.heic", IMAGE)]
        result = read(folder, tar_of(*members, ("2.txt", b"x"), ("3.mp4", b"x"), ("3.txt", b"x"), *pairs("4")))
        none = "no image of a format that is read, but"
        assert result.refused == {f"{none} .heic": 2, f"{none} .svg": 1, "no image": 1}
        assert result.examples == {
            f"{none} .heic": "row 0 (0: .heic .txt)",
            f"{none} .svg": "row 1 (1: .svg .txt)",
            "no image": "row 3 (3: .mp4 .txt)",
        }

    def test_a_suffix_is_read_or_not(self) -> None:
        assert not IMAGE_SUFFIXES & UNREAD_IMAGE_SUFFIXES

    def test_two_part_suffixes_are_other_members(self, folder: Location) -> None:
        members = [("0.seg.png", b"not the image"), *pairs("0"), ("0.old.txt", b"not the caption"), *pairs("1")]
        content = tar_of(*members)
        result = read(folder, content)
        assert captions_by_key(result) == {"0": "caption of 0", "1": "caption of 1"}
        for row in result.table.to_pylist():
            assert content[row["image_offset"] :][: row["image_bytes"]] == IMAGE

    def test_a_key_with_dots_is_refused(self, folder: Location) -> None:
        with pytest.raises(
            DataError,
            match=r"0\.tar: sample 'IMG_0': a key ends at the first dot, so \.0\.png and \.0\.txt are read as",
        ):
            read(folder, tar_of(*pairs("IMG_0.0", "IMG_0.1", "IMG_1.0")))

    def test_directories_may_have_dots(self, folder: Location) -> None:
        assert captions_by_key(read(folder, tar_of(*pairs("v1.0/a", "v1.1/a")))) == {
            "v1.0/a": "caption of v1.0/a",
            "v1.1/a": "caption of v1.1/a",
        }

    def test_a_byte_order_mark_is_no_part_of_a_caption(self, folder: Location) -> None:
        result = read(folder, tar_of(*pairs("0", caption="\ufeff a  cat \ufeffx".format)))
        assert captions_by_key(result) == {"0": "a cat \ufeffx"}


class TestOrder:
    @pytest.mark.parametrize(
        ("members", "apart"),
        [
            ([*pairs("0", "1")[::2], *pairs("0", "1")[1::2]], r"'0'.*\(\.txt is apart from \.png\)"),
            ([*pairs("0", "1"), ("0.json", b"{}")], r"'0'.*\(\.json is apart from \.png\)"),
            ([pairs("0")[0], ("1.txt", b"x"), pairs("0")[1]], r"'0'.*\(\.txt is apart from \.png\)"),
        ],
        ids=["images first", "json last", "one between"],
    )
    def test_members_of_a_sample_that_are_apart(self, folder: Location, members: Members, apart: str) -> None:
        with pytest.raises(DataError, match=rf"0\.tar: sample {apart}.*one after the other"):
            read(folder, tar_of(*members))
        config = CaptionsConfig(paths=(f"{folder}/0.tar",))
        (work_unit,) = list_work_units(config)
        with pytest.raises(DataError, match="not adjacent"):
            count_captions(work_unit, config)

    def test_a_caption_never_joins_the_picture_of_another_key(self, folder: Location) -> None:
        members = [("0.png", IMAGE), ("1.txt", b"of 1"), ("2.png", IMAGE), ("2.txt", b"of 2"), ("3.txt", b"of 3")]
        result = read(folder, tar_of(*members, ("4.png", IMAGE)))
        assert captions_by_key(result) == {"2": "of 2"}
        assert sum(result.refused.values()) == result.rows_in - 1 == 4


class TestKindsOfMembers:
    @pytest.mark.parametrize(
        ("header", "said"),
        [
            (member("1.png", kind=tarfile.LNKTYPE, link="0.png"), r"'1': its \.png member is a hard link to '0\.png'"),
            (member("1.png", kind=tarfile.SYMTYPE, link="0.png"), r"'1': its \.png member is a symbolic link to '0\."),
            (member("1.txt", kind=tarfile.FIFOTYPE), r"'1': its \.txt member is no file.*remove it"),
        ],
        ids=["hard link", "symbolic link", "pipe"],
    )
    def test_a_member_without_content_of_its_own(self, folder: Location, header: tarfile.TarInfo, said: str) -> None:
        with pytest.raises(DataError, match=rf"0\.tar: sample {said}"):
            read(folder, tar_of(*pairs("0"), header, ("1.txt", b"x")))

    @pytest.mark.parametrize("form", ["gnu", "pax"])
    def test_a_sparse_member(self, folder: Location, form: str) -> None:
        content = bytearray(tar_of(*pairs("0"), *pairs("1")))
        at = content.rfind(b"1.png")
        if form == "gnu":
            content[at + 156 : at + 157] = tarfile.GNUTYPE_SPARSE
            content[at + 386 : at + 410] = b"%011o\0%011o\0" % (0, len(IMAGE))
            content[at + 483 : at + 495] = b"%011o\0" % len(IMAGE)
            total = 256 + sum(content[at : at + 148]) + sum(content[at + 156 : at + 512])
            content[at + 148 : at + 156] = b"%06o\0 " % total
        else:
            info = member("1.png", len(IMAGE))
            info.pax_headers = {"GNU.sparse.map": f"0,{len(IMAGE)}", "GNU.sparse.size": str(len(IMAGE))}
            content = bytearray(tar_of(*pairs("0")))[: content.find(b"1.png")]
            content += info.tobuf(tarfile.PAX_FORMAT) + IMAGE + bytes(-len(IMAGE) % 512 + 1024)
        with pytest.raises(DataError, match=r"0\.tar: sample '1': its \.png member is sparse.*without --sparse"):
            read(folder, bytes(content))


class TestCompressed:
    @pytest.mark.parametrize(
        ("pack", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
    )
    def test_a_compressed_tar_called_tar(self, folder: Location, pack: Callable[[bytes], bytes], kind: str) -> None:
        with pytest.raises(DataError, match=rf"0\.tar: {kind} data, not a plain tar: unpack it"):
            read(folder, pack(tar_of(*pairs("0", "1"))))


class TestCaptionMembers:
    def values(self, key: str) -> str:
        return json.dumps({"caption": f"caption of {key}", "url": "u", "note": None})

    def test_captions_in_json_alone(self, folder: Location) -> None:
        content = tar_of(*pairs("0", "1", suffix="json", caption=self.values))
        with pytest.raises(
            DataError,
            match=r"0\.tar: its samples have no \.txt member: set captions\.caption_field to .*"
            r"\['caption', 'url', 'note'\]",
        ):
            read(folder, content)
        assert captions_by_key(read(folder, content, "caption")) == {"0": "caption of 0", "1": "caption of 1"}

    def test_a_field_that_no_member_has(self, folder: Location) -> None:
        content = tar_of(*pairs("0", "1", suffix="json", caption=self.values))
        with pytest.raises(
            DataError, match=r"no captions in 'text'; set captions\.caption_field to one of \['caption'"
        ):
            read(folder, content, "text")

    def test_a_field_and_no_json_member(self, folder: Location) -> None:
        with pytest.raises(DataError, match=r"no \.json member with captions\.caption_field=text; leave it unset"):
            read(folder, tar_of(*pairs("0", "1")), "text")

    def test_some_captions_are_enough(self, folder: Location) -> None:
        members = [*pairs("0"), ("1.png", IMAGE), ("1.json", b"{}")]
        assert read(folder, tar_of(*members)).refused == {"missing caption": 1}
