"""Every storage operation gives the same on a local directory and on S3."""

import errno
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import Fault, FaultProxy, fault_proxy

from mode_ray import storage
from mode_ray.errors import WriteError
from mode_ray.storage import Location


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty directory of each kind."""
    if request.param == "local":
        return Location.parse(str(tmp_path))
    return Location.parse(request.getfixturevalue("bucket")) / "run"


def globbed(root: Location, pattern: str) -> list[Location]:
    return [entry.location for entry in root.glob(pattern)]


def below(root: Location, files: list[Location]) -> list[str]:
    """The files' paths, relative to the root."""
    return [file.uri.removeprefix(f"{root.uri}/") for file in files]


def fill(root: Location, *names: str) -> None:
    """Write a small file of each name."""
    for name in names:
        (root / name).write_text(name)


def write_half(target: Location) -> None:
    """Begin an atomic write and fail in the middle of it."""
    with target.open_atomic() as stream:
        stream.write(b"half of it")
        raise RuntimeError("power cut")


class TestReadingAndWriting:
    def test_bytes_and_text_come_back_as_written(self, root: Location) -> None:
        (root / "a/data.bin").write_bytes(bytes(range(256)))
        (root / "a/text.txt").write_text("Zürich 北京 🐈\n")
        assert (root / "a/data.bin").read_bytes() == bytes(range(256))
        assert (root / "a/text.txt").read_text() == "Zürich 北京 🐈\n"
        assert (root / "a/data.bin").size_bytes() == 256

    def test_a_second_write_replaces_the_first(self, root: Location) -> None:
        target = root / "manifest.json"
        target.write_text("the first, which is longer")
        target.write_text("the second")
        assert target.read_text() == "the second"

    def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(self, root: Location) -> None:
        target, ended = root / "progress.json", threading.Event()
        target.write_text("[]")

        def write() -> None:
            for length in itertools.cycle(range(1, 40)):
                target.write_text(json.dumps(["x"] * length))
                if ended.is_set():
                    return

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(60):
                json.loads(target.read_text())
        finally:
            ended.set()
            writer.join()

    def test_names_with_spaces_and_signs_survive(self, root: Location) -> None:
        name = "a b/größe #1 %20 50%.txt"
        fill(root, name)
        assert below(root, root.files(recursive=True)) == [name]
        assert (root / name).read_text() == name

    def test_a_table_comes_back_and_its_size_is_returned(self, root: Location) -> None:
        table = pa.table({"key": ["a", "b"], "distance": [0.5, 1.5]})
        size = (root / "x/part.parquet").write_table(table)
        assert size == (root / "x/part.parquet").size_bytes() > 0
        assert (root / "x/part.parquet").read_table() == table
        assert (root / "x/part.parquet").read_table(["distance"]) == table.select(["distance"])

    def test_random_access_reads_only_what_is_asked(self, root: Location) -> None:
        (root / "digits").write_bytes(b"0123456789")
        with (root / "digits").open_input() as source:
            source.seek(4)
            assert source.read(3) == b"456"

    def test_reading_what_is_not_there_raises_file_not_found(self, root: Location) -> None:
        with pytest.raises(FileNotFoundError):
            (root / "absent").read_bytes()


@pytest.fixture
def broken_answers(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Location, FaultProxy]]:
    """A bucket reached through a proxy, which can break connections during responses."""
    with fault_proxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage._filesystem.cache_clear()
        yield Location.parse(bucket), proxy
    storage._filesystem.cache_clear()


class TestAnswersThatBreakOff:
    def test_reading_begins_again(self, broken_answers: tuple[Location, FaultProxy], tmp_path: Path) -> None:
        root, proxy = broken_answers
        table = pa.table({"key": ["a", "b"]})
        (root / "part.parquet").write_table(table)
        (root / "file").write_bytes(b"content" * 1000)

        def every_other(method: str, path: str, earlier: int) -> Fault | None:
            return "half" if method == "GET" and earlier % 2 == 0 else None

        proxy.schedule = every_other
        assert (root / "file").read_bytes() == b"content" * 1000
        (root / "file").copy_to(Location(str(tmp_path / "copy")))
        assert (tmp_path / "copy").read_bytes() == b"content" * 1000
        assert (root / "part.parquet").read_table() == table
        assert proxy.met["half"] >= 3

    def test_it_fails_after_the_last_retry(self) -> None:
        reads = []

        def broken() -> None:
            reads.append("begun")
            raise OSError("the connection broke")

        with pytest.raises(OSError, match="the connection broke"):
            Location.parse("s3://bucket/file").complete(broken)
        assert len(reads) == 4

    def test_what_will_not_be_mended_by_another_try_is_raised_at_once(self, tmp_path: Path) -> None:
        for location, error in (("s3://bucket/file", PermissionError()), (str(tmp_path), OSError("damaged"))):
            reads: list[str] = []

            def refused(error: OSError = error, reads: list[str] = reads) -> None:
                reads.append("begun")
                raise error

            with pytest.raises(type(error)):
                Location.parse(location).complete(refused)
            assert len(reads) == 1


class TestAtomicWrites:
    def test_an_exception_leaves_nothing(self, root: Location) -> None:
        with pytest.raises(RuntimeError, match="power cut"):
            write_half(root / "out/file")
        assert not (root / "out/file").exists()
        if root.is_local:
            assert list(Path(root.path, "out").iterdir()) == [], "temporary file left behind"

    def test_an_exception_leaves_the_earlier_file(self, root: Location) -> None:
        target = root / "file"
        target.write_text("earlier")
        with pytest.raises(RuntimeError, match="power cut"):
            write_half(target)
        assert target.read_text() == "earlier"

    def test_nothing_is_seen_before_the_end(self, root: Location) -> None:
        with (root / "file").open_atomic() as stream:
            stream.write(b"content")
            assert not (root / "file").exists()
            assert root.files(recursive=True) == []
        assert (root / "file").read_bytes() == b"content"

    def test_a_table_that_cannot_be_written_leaves_nothing(self, root: Location) -> None:
        union = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])
        with pytest.raises(pa.ArrowNotImplementedError):
            (root / "part.parquet").write_table(pa.table({"x": union}))
        assert not (root / "part.parquet").exists()


class TestWhatCannotBeWritten:
    def test_a_full_disk_is_one_sentence_that_names_the_directory_and_the_fix(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_space(*_: object) -> NoReturn:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", no_space)
        with pytest.raises(
            WriteError, match=f"no space left on {tmp_path}/out .*: free space and run again"
        ) as caught:
            Location.parse(f"{tmp_path}/out/file").write_text("x")
        assert isinstance(caught.value, OSError), "it is tried again as such"
        assert list((tmp_path / "out").iterdir()) == []

    def test_any_other_reason_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "file").mkdir()
        with pytest.raises(WriteError, match=f"{tmp_path}/file: cannot be written .*Is a directory"):
            Location.parse(f"{tmp_path}/file").write_text("x")

    def test_what_killed_writers_left_is_removed_and_nothing_else(self, tmp_path: Path) -> None:
        left = tmp_path / "deep/.part.parquet.0123456789ab.tmp"
        kept = [tmp_path / "part.parquet", tmp_path / ".mine.tmp", tmp_path / "deep/x.0123456789ab.tmp"]
        left.parent.mkdir()
        for file in (left, *kept):
            file.touch()
        Location.parse(str(tmp_path)).remove_temporaries()
        assert not left.exists()
        assert all(file.exists() for file in kept)


class TestTables:
    @pytest.mark.parametrize("kind", [pa.float16(), pa.float32()])
    def test_columns_of_vectors_come_back_bit_for_bit(self, root: Location, kind: pa.DataType) -> None:
        values = np.random.default_rng(0).standard_normal(3000).astype(kind.to_pandas_dtype())
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), 30)
        table = pa.table(
            {"key": [str(number) for number in range(100)], "embedding": vectors, "distance": values[:100]}
        )
        (root / "x.parquet").write_table(table)
        assert (root / "x.parquet").read_table().equals(table)

    def test_a_flipped_bit_is_found(self, tmp_path: Path) -> None:
        location = Location.parse(f"{tmp_path}/x.parquet")
        values = np.random.default_rng(0).standard_normal(10_000)
        location.write_table(pa.table({"distance": values}))
        damaged = bytearray(location.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        location.write_bytes(bytes(damaged))
        with pytest.raises(OSError, match="CRC checksum"):
            location.read_table()


class TestLooking:
    def test_exists_and_is_directory(self, root: Location) -> None:
        fill(root, "a/b.txt")
        assert (root / "a").exists()
        assert (root / "a").is_directory()
        assert (root / "a/b.txt").exists()
        assert not (root / "a/b.txt").is_directory()
        assert not (root / "a/c.txt").exists()
        assert not (root / "c").is_directory()

    def test_files_are_sorted_and_only_of_this_directory(self, root: Location) -> None:
        fill(root, "b", "a", "sub/c")
        assert below(root, root.files()) == ["a", "b"]
        assert below(root, root.files(recursive=True)) == ["a", "b", "sub/c"]

    def test_the_directories_of_one(self, root: Location) -> None:
        fill(root, "b/1", "a/deep/2", "file", ".hidden/3")
        assert below(root, root.directories()) == ["a", "b"]
        assert (root / "absent").directories() == []

    def test_no_directory_has_no_files(self, root: Location) -> None:
        assert (root / "absent").files() == []
        assert (root / "absent").files(recursive=True) == []

    def test_dot_files_and_files_in_dot_directories_are_hidden(self, root: Location) -> None:
        fill(root, "a", ".hidden", "sub/.hidden", ".cache/a", "sub/.cache/deep/a")
        assert below(root, root.files(recursive=True)) == ["a"]
        assert below(root, globbed(root, "**/*")) == ["a"]

    def test_a_dot_directory_that_is_named_is_listed(self, root: Location) -> None:
        fill(root, ".cache/a")
        assert below(root, (root / ".cache").files()) == [".cache/a"]

    @pytest.mark.parametrize(
        ("pattern", "found"),
        [
            ("*.parquet", ["1.parquet", "2.parquet"]),
            ("?.txt", ["3.txt"]),
            ("[12].parquet", ["1.parquet", "2.parquet"]),
            ("x/*.parquet", ["x/4.parquet"]),
            ("*/*.parquet", ["x/4.parquet"]),
            ("**/*.parquet", ["1.parquet", "2.parquet", "x/4.parquet", "x/y/5.parquet"]),
            ("x/**/*.parquet", ["x/4.parquet", "x/y/5.parquet"]),
            ("x/**", ["x/4.parquet", "x/y/5.parquet"]),
            ("**/y/*", ["x/y/5.parquet"]),
            ("1.parquet", ["1.parquet"]),
            ("absent/*.parquet", []),
            ("absent.parquet", []),
        ],
    )
    def test_glob(self, root: Location, pattern: str, found: list[str]) -> None:
        fill(root, "1.parquet", "2.parquet", "3.txt", "x/4.parquet", "x/y/5.parquet")
        assert below(root, globbed(root, pattern)) == found

    def test_wildcards_leave_hidden_names_unless_they_begin_like_them(self, root: Location) -> None:
        fill(root, "a", "_b", "_tmp/c", ".d", "_year=1/e", "x/_f")
        assert below(root, globbed(root, "**")) == ["_year=1/e", "a"]
        assert below(root, globbed(root, "_*")) == ["_b"]
        assert below(root, globbed(root, ".*")) == [".d"]
        assert below(root, globbed(root, "_tmp/*")) == ["_tmp/c"]

    def test_directories_are_matched_on_request(self, root: Location) -> None:
        fill(root, "part-0/a", "part-1/b", "part-2")
        assert [entry.location.name for entry in root.glob("part-*", directories=True)] == ["part-0", "part-1"]

    def test_the_entry_of_a_file(self, root: Location) -> None:
        fill(root, "v[1]/a")
        entry = (root / "v[1]/a").entry()
        assert entry is not None
        assert (entry.location, entry.size_bytes) == (root / "v[1]/a", len("v[1]/a"))
        assert (root / "v[1]").entry() is None
        assert (root / "absent").entry() is None


class TestDeleting:
    def test_a_file(self, root: Location) -> None:
        fill(root, "a/1", "a/2")
        (root / "a/1").delete()
        assert below(root, root.files(recursive=True)) == ["a/2"]

    def test_a_directory_with_all_that_is_in_it(self, root: Location) -> None:
        fill(root, "a/1", "a/b/2", "ab")
        (root / "a").delete()
        assert not (root / "a").exists()
        assert below(root, root.files(recursive=True)) == ["ab"]

    def test_what_is_not_there(self, root: Location) -> None:
        (root / "absent").delete()
        assert root.files(recursive=True) == []


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "uri", "path"),
        [
            ("/data/run/", "/data/run", "/data/run"),
            ("file:///data/run", "/data/run", "/data/run"),
            ("s3://bucket/run/", "s3://bucket/run", "bucket/run"),
            ("s3://bucket", "s3://bucket", "bucket"),
            ("gs://bucket/a/b", "gs://bucket/a/b", "bucket/a/b"),
            ("s3://anonymous@bucket/a", "s3://anonymous@bucket/a", "bucket/a"),
        ],
    )
    def test_uri_and_path(self, text: str, uri: str, path: str) -> None:
        location = Location.parse(text)
        assert (location.uri, location.path) == (uri, path)
        assert Location.parse(uri) == location

    @pytest.mark.parametrize(
        ("text", "parent", "name"),
        [
            ("/data/run", "/data", "run"),
            ("/data", "/", "data"),
            ("/", "/", ""),
            ("s3://bucket/a/b", "s3://bucket/a", "b"),
            ("s3://bucket/a", "s3://bucket", "a"),
            ("s3://bucket", "s3://bucket", "bucket"),
            ("s3://anonymous@bucket/a", "s3://anonymous@bucket", "a"),
        ],
    )
    def test_parent_and_name(self, text: str, parent: str, name: str) -> None:
        location = Location.parse(text)
        assert (location.parent.uri, location.name) == (parent, name)

    @pytest.mark.parametrize(("base", "part"), itertools.product(["/", "/a", "s3://bucket"], ["b", "/b", "b/"]))
    def test_joining_puts_exactly_one_slash(self, base: str, part: str) -> None:
        assert (Location.parse(base) / part).uri == f"{base.rstrip('/')}/b"


def test_anonymous_requests_carry_no_credentials(bucket: str) -> None:
    (Location.parse(bucket) / "data/a").write_text("a")
    root = Location.parse(bucket.replace("s3://", "s3://anonymous@"))
    (found,) = root.entries(recursive=True)
    assert found.location == root / "data/a"
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        found.location.read_bytes()
    boto3.client("s3").put_object_acl(Bucket=bucket.removeprefix("s3://"), Key="data/a", ACL="public-read")
    assert found.location.read_text() == "a"


def test_a_missing_bucket_is_an_error_that_names_it(s3_server: str) -> None:
    with pytest.raises(OSError, match="no-such-bucket"):
        Location.parse("s3://no-such-bucket/x").write_text("x")


def test_other_programs_can_read_what_was_written(root: Location) -> None:
    table = pa.table({"x": [1, 2]})
    (root / "x.parquet").write_table(table)
    assert pq.read_table((root / "x.parquet").path, filesystem=root.filesystem) == table
