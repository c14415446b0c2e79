"""Which files paths and listings name, and that a listing of many costs few questions to the filesystem."""

from pathlib import Path

import pyarrow.fs
import pytest

from mode_ray.captions.files import find_files
from mode_ray.errors import DataError
from mode_ray.storage import Location


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder of each kind with five shards and a note."""
    root = Location(str(tmp_path)) if request.param == "local" else Location.parse(request.getfixturevalue("bucket"))
    for name in ("1.tar", "2.tar", "sub/3.tar", "sub/4.tar", "other/5.tar", "sub/notes.md"):
        (root / "data" / name).write_bytes(b"x" * 10)
    return root


def found(*paths: str) -> list[str]:
    """The names of the files found, in order."""
    return [entry.location.name for entry in find_files(paths, lambda name: name.endswith(".tar"))]


class TestListings:
    def test_paths_wildcards_and_directories_one_a_line(self, folder: Location) -> None:
        text = f"# the first part\n\n  1.tar  \r\nsub\n../data/./other/*.tar\n{folder}/data/2.tar\n"
        (folder / "data/all.txt").write_text(text)
        assert found(f"{folder}/data/all.txt") == ["1.tar", "3.tar", "4.tar", "5.tar", "2.tar"]

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
        listed = find_files([f"{folder}/data/all.list"], lambda _: True)
        assert listed == find_files([f"{folder}/data/1.tar"], lambda _: True)
        assert listed == find_files([f"{folder}/data/*1.tar"], lambda _: True)
        info = pyarrow.fs.FileSystem.get_file_info(listed[0].location.filesystem, listed[0].location.path)
        assert listed[0].size_bytes == 10
        assert listed[0].modified_unix_seconds == pytest.approx(info.mtime.timestamp(), abs=1)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"1.tar\nabsent.tar\n", r"all\.txt: line 2: absent\.tar: no such file"),
            (b"# one\n\n*.zip\n", r"all\.txt: line 3: \*\.zip: no such file, and nothing matches"),
            (b"ftp://host/x.tar\n", r"all\.txt: line 1: ftp://host/x\.tar: unknown scheme"),
            (b"other.txt\n", r"all\.txt: line 1: other\.txt: a listing cannot name another listing"),
            (b"# nothing\n", r"all\.txt: the listing contains no path"),
            (b"caf\xe9.tar\n", r"all\.txt: the listing is not UTF-8 text \(byte 3"),
        ],
        ids=["absent", "wildcard", "scheme", "nested", "empty", "latin-1"],
    )
    def test_errors_name_the_listing_and_the_line(self, folder: Location, content: bytes, said: str) -> None:
        (folder / "data/all.txt").write_bytes(content)
        with pytest.raises(DataError, match=said):
            found(f"{folder}/data/all.txt")

    def test_a_listing_that_is_not_there(self, folder: Location) -> None:
        with pytest.raises(DataError, match=r"captions\.paths: .*absent\.txt: no such file; expected a listing"):
            found(f"{folder}/absent.txt")
