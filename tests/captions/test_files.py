"""Which files paths and listings name, which format is chosen, and that many files take few requests."""

import os
from pathlib import Path

import pyarrow.fs
import pytest

from mode_ray.captions.files import find_files, find_roots
from mode_ray.captions.shard_choice import ShardChoice
from mode_ray.errors import DataError, UsageError
from mode_ray.stages.work_unit import ALL_FORMATS, PAIR_FORMATS
from mode_ray.storage import FileEntry, Location


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder of each kind with five shards and a note."""
    root = Location(str(tmp_path)) if request.param == "local" else Location.parse(request.getfixturevalue("bucket"))
    for name in ("1.tar", "2.tar", "sub/3.tar", "sub/4.tar", "other/5.tar", "sub/notes.md"):
        (root / "data" / name).write_bytes(b"x" * 10)
    return root


def entries(*paths: str, shard_format: str = "auto") -> tuple[list[FileEntry], list[str]]:
    """The files found, in order, and what was said."""
    said: list[str] = []
    return find_files(paths, ShardChoice(shard_format, ALL_FORMATS, said.append)), said


def found(*paths: str) -> list[str]:
    """The names of the files found, in order."""
    return [entry.location.name for entry in entries(*paths)[0]]


def fill(root: Location, *names: str) -> None:
    """Write a small file of each name."""
    for name in names:
        (root / name).write_bytes(b"x")


class TestPaths:
    def test_ranges_and_lists_in_braces(self, folder: Location) -> None:
        assert found(f"{folder}/data/{{1..2}}.tar") == ["1.tar", "2.tar"]
        assert found(f"{folder}/data/{{sub/4,other/5,2}}.tar") == ["4.tar", "5.tar", "2.tar"]
        assert found(f"{folder}/data/{{sub,other}}") == ["3.tar", "4.tar", "5.tar"]

    @pytest.mark.parametrize("last", [4, 40], ids=["looked up one by one", "listed at once"])
    def test_a_missing_shard_of_a_range_is_named(self, folder: Location, last: int) -> None:
        with pytest.raises(
            DataError, match=rf"\{{1\.\.{last}\}}\.tar: .*/3\.tar: no such file.*{last - 2} of its {last}"
        ):
            found(f"{folder}/data/{{1..{last}}}.tar")

    def test_paths_joined_by_two_colons(self, folder: Location) -> None:
        assert found(f"{folder}/data/2.tar::{folder}/data/sub/*.tar") == ["2.tar", "3.tar", "4.tar"]

    def test_a_name_that_exists_goes_before_a_wildcard(self, folder: Location) -> None:
        fill(folder, "v[1]/0.tar", "v1/1.tar", "{a,b}.tar")
        assert found(f"{folder}/v[1]/0.tar", f"{folder}/v[1]", f"{folder}/v[1]/*.tar") == ["0.tar"] * 3
        assert found(f"{folder}/v[0-9]/*.tar") == ["1.tar"]
        assert found(f"{folder}/{{a,b}}.tar") == ["{a,b}.tar"]

    def test_what_spark_and_delta_leave_beside_the_data_is_skipped(self, folder: Location) -> None:
        hidden = ("_temporary/0/2.parquet", "_delta_log/3.parquet", "._0.parquet", ".0.parquet.crc", "_SUCCESS")
        fill(folder, "t/0.parquet", "t/year=1/1.parquet", *(f"t/{name}" for name in hidden))
        assert found(f"{folder}/t") == found(f"{folder}/t/**") == ["0.parquet", "1.parquet"]
        assert found(f"{folder}/t/*") == ["0.parquet"]
        assert found(f"{folder}/t/_temporary/0/2.parquet", f"{folder}/t/_temporary") == ["2.parquet"] * 2

    def test_a_wildcard_that_matches_directories_and_no_shard_reads_these(self, folder: Location) -> None:
        fill(folder, "t/date=1/0.parquet", "t/date=2/1.parquet", "t/date=2/_SUCCESS", "t/README.md")
        assert found(f"{folder}/t/date=*") == found(f"{folder}/t/*") == ["0.parquet", "1.parquet"]

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        fill(Location(str(tmp_path)), "data/0.tar", "lists/all.txt")
        (tmp_path / "lists/all.txt").write_text("~/data/0.tar\n")
        assert found("~/data", "~/lists/all.txt") == ["0.tar", "0.tar"]

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("pipe:cat 0.tar", r"captions\.paths: pipe:cat 0\.tar: shell commands are not run"),
            ("https://host/0.tar", r"captions\.paths: https://host/0\.tar: .*download it"),
            ("s3://bucket/a//0.tar", r"captions\.paths: .*empty part between two slashes"),
            ("", r"captions\.paths: .*empty"),
        ],
    )
    def test_what_cannot_be_meant(self, path: str, said: str) -> None:
        with pytest.raises(DataError, match=said):
            found(path)

    def test_a_file_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.tar")).write_bytes(b"x")
        with pytest.raises(DataError, match=r"contains a name that is not UTF-8 .*caf.*: rename it"):
            found(str(tmp_path))

    def test_directories_of_a_task(self, folder: Location) -> None:
        assert find_roots([f"{folder}/data/{{sub,other}}", f"{folder}/data/o*"]) == [
            folder / "data/sub",
            folder / "data/other",
            folder / "data/other",
        ]
        with pytest.raises(UsageError, match="no directory matches"):
            find_roots([f"{folder}/x*"])


class TestFormats:
    """One format is read of a directory or wildcard."""

    def test_the_metadata_of_img2dataset_are_left_out(self, folder: Location) -> None:
        fill(folder, *(f"laion/{shard:05d}{end}" for shard in range(2) for end in (".tar", ".parquet", "_stats.json")))
        for path in ("laion", "laion/", "laion/*", "{laion,laion}"):
            files, said = entries(f"{folder}/{path}")
            assert {file.location.name for file in files} == {"00000.tar", "00001.tar"}
            assert "2 .tar files read, 2 .parquet files left out (metadata: each has the name of a tar" in said[0]
        assert found(f"{folder}/laion/*.parquet") == ["00000.parquet", "00001.parquet"]

    def test_tars_that_are_still_being_written_have_no_metadata_yet(self, folder: Location) -> None:
        fill(folder, "laion/0.tar", "laion/0.parquet", "laion/1.tar", "laion/sub/0.tar", "laion/sub/0.csv.gz")
        assert found(f"{folder}/laion") == ["0.tar", "1.tar", "0.tar"]

    @pytest.mark.parametrize(
        ("names", "held"),
        [
            (("0.tar", "1.parquet"), "1 .parquet, 1 .tar"),
            (("0.tar", "sub/0.parquet"), "1 .tar, 1 .parquet"),
            (("0.jsonl", "0.parquet"), "1 .jsonl, 1 .parquet"),
            (("0.csv", "1.csv", "1.tsv"), "2 .csv, 1 .tsv"),
        ],
    )
    def test_other_mixtures_are_refused(self, folder: Location, names: tuple[str, ...], held: str) -> None:
        fill(folder, *(f"mixed/{name}" for name in names))
        with pytest.raises(
            DataError, match=r"mixed: holds several formats \(.*\): set captions\.format, or name"
        ) as caught:
            found(f"{folder}/mixed")
        counts = str(caught.value).partition("(")[2].partition(" files)")[0]
        assert sorted(counts.split(", ")) == sorted(held.split(", "))

    def test_the_config_decides(self, folder: Location) -> None:
        fill(folder, "mixed/0.csv", "mixed/1.tsv", "mixed/2.tsv")
        files, said = entries(f"{folder}/mixed", shard_format="tsv")
        assert [file.location.name for file in files] == ["1.tsv", "2.tsv"]
        assert "2 .tsv files read, 1 .csv file left out (captions.format)" in said[0]

    def test_files_that_are_no_shards_do_not_count(self, folder: Location) -> None:
        fill(folder, "x/0.tar", "x/README.md", "x/license", "x/labels.csv")
        choice = ShardChoice("auto", PAIR_FORMATS, pytest.fail)
        for path in ("x", "x/*"):
            assert [file.location.name for file in find_files([f"{folder}/{path}"], choice)] == ["0.tar"]

    def test_compressed_tars_are_said_or_refused(self, folder: Location) -> None:
        fill(folder, "both/0.tar", "both/1.tar.gz", "gz/0.tar.gz", "gz/1.TGZ")
        files, said = entries(f"{folder}/both")
        assert [file.location.name for file in files] == ["0.tar"]
        assert "1 .gz file left out; 1.tar.gz is a compressed tar: unpack it" in said[0]
        with pytest.raises(DataError, match=r"gz: 0\.tar\.gz is a compressed tar: unpack it \(gunzip"):
            found(f"{folder}/gz")

    def test_a_directory_of_loose_images(self, folder: Location) -> None:
        fill(folder, "loose/0.jpg", "loose/0.txt", "loose/1.jpg")
        with pytest.raises(DataError, match=r"contains no \.parquet, .* file \(it contains 2 \.jpg, 1 \.txt files\)"):
            found(f"{folder}/loose")


class TestListings:
    def test_paths_wildcards_and_directories_one_a_line(self, folder: Location) -> None:
        text = f"# the first part\n\n  1.tar  \r\nsub\n../data/./other/*.tar\n{folder}/data/2.tar\n"
        (folder / "data/all.txt").write_text(text)
        assert found(f"{folder}/data/all.txt") == ["1.tar", "3.tar", "4.tar", "5.tar", "2.tar"]

    def test_a_byte_order_mark_and_the_notation_of_paths(self, folder: Location) -> None:
        text = "\ufeff{1..2}.tar\n\nsub/3.tar::other/*.tar\n"
        (folder / "data/all.txt").write_bytes(text.encode())
        assert found(f"{folder}/data/all.txt") == ["1.tar", "2.tar", "3.tar", "5.tar"]

    def test_listings_named_by_braces(self, folder: Location) -> None:
        for number in (1, 2):
            (folder / f"data/part{number}.txt").write_text(f"{number}.tar\n")
        assert found(f"{folder}/data/part{{1..2}}.txt") == ["1.tar", "2.tar"]

    def test_many_files_of_a_directory_cost_one_question(self, tmp_path: Path) -> None:
        names = [f"{number}.tar" for number in range(100)]
        for name in names:
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "all.list").write_text("\n".join(reversed(names)))
        assert found(str(tmp_path / "all.list")) == names[::-1]
        (tmp_path / "7.tar").unlink()
        with pytest.raises(DataError, match=r"all\.list: line 93: 7\.tar: no such file"):
            found(str(tmp_path / "all.list"))

    def test_sizes_and_times_are_those_of_the_files(self, folder: Location) -> None:
        (folder / "data/all.list").write_text("1.tar\n")
        listed, _ = entries(f"{folder}/data/all.list")
        assert listed == entries(f"{folder}/data/1.tar")[0] == entries(f"{folder}/data/*1.tar")[0]
        info = pyarrow.fs.FileSystem.get_file_info(listed[0].location.filesystem, listed[0].location.path)
        assert listed[0].size_bytes == 10
        assert listed[0].modified_unix_seconds == pytest.approx(info.mtime.timestamp(), abs=1)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"1.tar\nabsent.tar\n", r"all\.txt: line 2: absent\.tar: no such file"),
            (b"# one\n\n*.zip\n", r"all\.txt: line 3: \*\.zip: no such file, and nothing matches"),
            (b"{1..3}.tar\n", r"all\.txt: line 1: \{1\.\.3\}\.tar: .*/data/3\.tar: no such file"),
            (b"pipe:cat 1.tar\n", r"all\.txt: line 1: pipe:cat 1\.tar: shell commands"),
            (b"ftp://host/x.tar\n", r"all\.txt: line 1: ftp://host/x\.tar: unknown scheme"),
            (b"other.txt\n", r"all\.txt: line 1: other\.txt: a listing cannot name another listing"),
            (b"# nothing\n", r"all\.txt: the listing contains no path"),
            (b"caf\xe9.tar\n", r"all\.txt: the listing is not UTF-8 text \(byte 3"),
        ],
        ids=["absent", "wildcard", "range", "command", "scheme", "nested", "empty", "latin-1"],
    )
    def test_errors_name_the_listing_and_the_line(self, folder: Location, content: bytes, said: str) -> None:
        (folder / "data/all.txt").write_bytes(content)
        with pytest.raises(DataError, match=said):
            found(f"{folder}/data/all.txt")

    def test_a_listing_that_is_not_there(self, folder: Location) -> None:
        with pytest.raises(DataError, match=r"captions\.paths: .*absent\.txt: no such file; expected a listing"):
            found(f"{folder}/absent.txt")
