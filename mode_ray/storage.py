"""Local, S3 and GCS paths behind one URI type; every write is atomic.

It uses pyarrow's filesystems. They read AWS_ENDPOINT_URL and the usual credentials, and Ray Data and parquet support
them directly.
"""

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, cast

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from mode_ray.errors import WriteError
from mode_ray.util.parquet_encodings import column_encodings
from mode_ray.util.path_notation import ANONYMOUS, bucket_of, matches, parse_path
from mode_ray.util.retry import retry

_REMOTE_BUFFER_BYTES = 64 << 20
_COPIED_AT_ONCE_BYTES = 16 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_READ_RETRIES = 3
_Read = TypeVar("_Read")


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, bucket: str, anonymous: bool) -> pyarrow.fs.FileSystem:
    """The filesystem client of a bucket, cached per process: building one costs a region lookup."""
    if scheme == "file":
        return pyarrow.fs.LocalFileSystem()
    if anonymous and scheme == "s3":
        # Arrow's URIs of S3 cannot ask for this. `region` is looked up by the client with credentials.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = _filesystem(scheme, bucket, anonymous=False).region
        return pyarrow.fs.S3FileSystem(
            anonymous=True, region=region, endpoint_override=endpoint, allow_delayed_open=True
        )
    # With delayed open, a small object takes one request instead of the three of a multipart upload. Arrow's retries
    # keep their defaults: an S3 client built from a URI retries an operation for six seconds (31 times, also after
    # 500, 503 and broken connections) and drops a connection after three silent seconds. On Linux these timeouts
    # cannot be changed.
    options = "?allow_delayed_open=true" if scheme == "s3" else ""
    user = f"{ANONYMOUS}@" if anonymous else ""
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{user}{bucket}{options}")
    return filesystem


@dataclass(frozen=True, order=True, slots=True)
class Location:
    """A file or directory by URI: `/data/run`, `file:///data/run`, `s3://bucket/run` or `gs://bucket/run`.

    Build it with `Location.parse`. Only the URI is pickled.

    Attributes:
        uri: Absolute local path, or `scheme://bucket/path`, without a trailing slash.
    """

    uri: str

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Make a location from a path or URI; relative paths are relative to the working directory.

        Raises:
            UsageError: As `parse_path`.
        """
        return cls(parse_path(text))

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, part: str) -> "Location":
        return Location(f"{self.uri.rstrip('/')}/{part.strip('/')}")

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine's filesystem."""
        return "://" not in self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """The parent directory; a bucket and the root are their own parents."""
        above = self.uri.rsplit("/", 1)[0]
        return self if above.endswith(":/") else Location(above or "/")

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """The pyarrow filesystem for `path`."""
        return _filesystem("file", "", anonymous=False) if self.is_local else _filesystem(*bucket_of(self.uri))

    @property
    def path(self) -> str:
        """The path for `filesystem`: without the scheme and `anonymous@`, the bucket first."""
        return self.uri if self.is_local else self.uri.split("://", 1)[1].removeprefix(f"{ANONYMOUS}@")

    def exists(self) -> bool:
        """Whether a file or directory exists."""
        return bool(self._info().type != pyarrow.fs.FileType.NotFound)

    def is_directory(self) -> bool:
        """Whether this is an existing directory (or an S3 prefix with objects below it)."""
        return bool(self._info().type == pyarrow.fs.FileType.Directory)

    def size_bytes(self) -> int:
        """Size of the file in bytes."""
        return int(self._info().size or 0)

    def _info(self) -> pyarrow.fs.FileInfo:
        return self.filesystem.get_file_info(self.path)

    def files(self, *, recursive: bool = False) -> list["Location"]:
        """Files in this directory, sorted; none if it does not exist.

        Files and directories whose names start with a dot are skipped.
        """
        return [entry.location for entry in self.entries(recursive=recursive)]

    def entries(self, *, recursive: bool = False) -> list["FileEntry"]:
        """The same files with their sizes and times, from a single listing."""
        return [
            entry
            for entry in self._below(pyarrow.fs.FileType.File, recursive=recursive)
            if "/." not in entry.location.path[len(self.path.rstrip("/")) :]
        ]

    def directories(self) -> list["Location"]:
        """Directories in this directory, sorted; with the rules of `files`."""
        found = [entry.location for entry in self._below(pyarrow.fs.FileType.Directory, recursive=False)]
        return [location for location in found if not location.name.startswith(".")]

    def _below(self, kind: pyarrow.fs.FileType, *, recursive: bool) -> list["FileEntry"]:
        """Everything of a kind in this directory, sorted."""
        selector = pyarrow.fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        prefix = self.uri.removesuffix(self.path)
        infos = self.filesystem.get_file_info(selector)
        found = []
        while infos:  # each is released as it is converted: there may be hundreds of thousands
            info = infos.pop()
            if info.type == kind:
                found.append(FileEntry.of(Location(prefix + info.path.rstrip("/")), info))
        found.sort()
        return found

    def entry(self) -> "FileEntry | None":
        """This file with its size and time; None if there is no such file."""
        info = self._info()
        return FileEntry.of(self, info) if info.type == pyarrow.fs.FileType.File else None

    def glob(self, pattern: str, *, directories: bool = False) -> list["FileEntry"]:
        """Files, or directories, below this directory that match a relative pattern, sorted.

        Args:
            pattern: With `*`, `?`, `[…]`; `**` spans directories. Hidden names need a pattern that begins like them.
            directories: Whether to match directories instead of files.
        """
        parts = pattern.rstrip("/").split("/")
        below = len(self.uri.rstrip("/")) + 1
        kind = pyarrow.fs.FileType.Directory if directories else pyarrow.fs.FileType.File
        found = self._below(kind, recursive=len(parts) > 1 or parts[-1] == "**")
        return [entry for entry in found if matches(entry.location.uri[below:].split("/"), parts)]

    def open_input(self) -> pa.NativeFile:
        """Open for random access."""
        return self.filesystem.open_input_file(self.path)

    def complete(self, read: Callable[[], _Read]) -> _Read:
        """Call a function that reads this file; retry if the connection breaks during the response.

        Arrow retries a request only until the response begins. Errors of a local file, and errors of a missing file or
        permission, are raised at once.

        Args:
            read: Opens and reads the file; has no side effects if it raises.
        """
        retries = 0 if self.is_local else _READ_RETRIES
        return retry(read, retries, never_on=(FileNotFoundError, PermissionError), first_pause_seconds=0.0)

    def read_bytes(self) -> bytes:
        """The whole file; never a mixture of two versions of it."""
        return self.complete(self._read_bytes)

    def _read_bytes(self) -> bytes:
        while True:
            # Opened as a file: the read() of a stream requests only 256 KiB at a time from an object store.
            with self.open_input() as source:
                data, version = bytes(source.read(source.size())), source.metadata()
            # Size and bytes are two requests to an object store. If the object is replaced between them, the bytes are
            # truncated, so the version is compared. A local file remains the one that was opened.
            if self.is_local or version == self._version():
                return data

    def _version(self) -> dict[bytes, bytes]:
        with self.open_input() as source:
            metadata: dict[bytes, bytes] = source.metadata()
        return metadata

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        return self.read_bytes().decode()

    @contextlib.contextmanager
    def open_atomic(self) -> Iterator[IO[bytes]]:
        """Write a file atomically; nothing is written if the block raises.

        Local: written to a temporary file in the same directory, flushed to disk, then renamed. Remote: buffered in
        memory, or on the local disk if large, then uploaded at once.

        Raises:
            WriteError: The disk is full, or the storage denies the write or does not respond.
        """
        try:
            with self._open_local() if self.is_local else self._open_remote() as stream:
                yield stream
        except WriteError:
            raise
        except OSError as error:
            raise self._write_error(error) from error

    @contextlib.contextmanager
    def _open_local(self) -> Iterator[IO[bytes]]:
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _open_remote(self) -> Iterator[IO[bytes]]:
        with tempfile.SpooledTemporaryFile(_REMOTE_BUFFER_BYTES, prefix="mode-ray-upload-") as buffer:
            yield cast("IO[bytes]", buffer)
            buffer.seek(0)
            with self.filesystem.open_output_stream(self.path, compression=None) as stream:
                shutil.copyfileobj(buffer, stream, _REMOTE_BUFFER_BYTES)

    def _write_error(self, error: OSError) -> WriteError:
        if error.errno in _NO_SPACE:
            full = self.parent if self.is_local else tempfile.gettempdir()  # where an upload is buffered
            reason = f"no space left on {full} (writing {self.name}): free space and run again"
        else:
            reason = f"{self}: cannot be written ({' '.join(str(error).split())}): fix this and run again"
        return WriteError(f"{reason}; finished work is kept")

    def remove_temporaries(self) -> None:
        """Remove the temporary files of killed writers below a local directory."""
        if self.is_local:
            for file in Path(self.path).rglob(".*.tmp"):
                if _TEMPORARY.fullmatch(file.name):
                    file.unlink(missing_ok=True)

    def copy_to(self, target: "Location") -> None:
        """Copy this file, atomically."""
        with self.open_input() as source, target.open_atomic() as stream:
            size = source.size()
            for start in range(0, size, _COPIED_AT_ONCE_BYTES):
                piece = functools.partial(source.read_at, min(_COPIED_AT_ONCE_BYTES, size - start), start)
                stream.write(self.complete(piece))

    def link_or_copy_to(self, target: "Location") -> None:
        """Give this file a second name, or copy it where the two are not on one local disk.

        Only for files that are never changed in place. Every write of this class replaces the file.
        """
        if self.is_local and target.is_local:
            Path(target.path).parent.mkdir(parents=True, exist_ok=True)
            Path(target.path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another file system, or one without links
                os.link(self.path, target.path)
                return
        self.copy_to(target)

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, atomically."""
        with self.open_atomic() as stream:
            stream.write(data)

    def write_text(self, text: str) -> None:
        """Write the whole file as UTF-8, atomically."""
        self.write_bytes(text.encode())

    def write_table(self, table: pa.Table) -> int:
        """Write a parquet file (zstd, page checksums), atomically.

        Returns:
            Its size in bytes.
        """
        with self.open_atomic() as stream:
            pq.write_table(
                table, stream, compression="zstd", write_page_checksum=True, **column_encodings(table.schema)
            )
            return stream.tell()

    def write_tables(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write a parquet file from tables, one row group each, atomically.

        Such tables are large, so the memory that Arrow's allocator would keep is released.
        """
        with self.open_atomic() as stream:
            options = {"compression": "zstd", "write_page_checksum": True, **column_encodings(schema)}
            with pq.ParquetWriter(stream, schema, **options) as writer:
                for table in tables:
                    writer.write_table(table)
        pa.default_memory_pool().release_unused()

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        """Read one parquet file; page checksums are verified if present.

        Raises:
            OSError: A page is damaged, or the filesystem fails.
        """
        return self._read_with(
            lambda source: pq.ParquetFile(source, page_checksum_verification=True).read(columns=columns)
        )

    def read_parquet_footer(self, size_bytes: int | None = None) -> pq.FileMetaData:
        """Read only the footer of a parquet file.

        Args:
            size_bytes: Size of the file, if a listing has given it. An object store then needs one request, not two.

        Raises:
            OSError: It is not a complete parquet file, or the filesystem fails.
        """
        if size_bytes is None or self.is_local:
            return self._read_with(pq.read_metadata)
        from pyarrow.dataset import ParquetFileFormat  # slow to import, and commands such as `status` do without

        # pyarrow's files ask for the size when they are opened; a fragment of a dataset can be given it.
        return self.complete(
            lambda: ParquetFileFormat().make_fragment(self.path, self.filesystem, file_size=size_bytes).metadata
        )

    def _read_with(self, read: Callable[[pa.NativeFile], _Read]) -> _Read:
        def read_once() -> _Read:
            with self.open_input() as source:
                return read(source)

        return self.complete(read_once)

    def delete(self) -> None:
        """Delete a file or a whole directory, if it exists."""
        kind = self._info().type
        if kind == pyarrow.fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind != pyarrow.fs.FileType.NotFound:
            self.filesystem.delete_file(self.path)


@dataclass(frozen=True, order=True, slots=True)
class FileEntry:
    """A file of a listing.

    Attributes:
        location: The file.
        size_bytes: Its size.
        modified_unix_seconds: Time of the last write; 0 if the filesystem does not report it. Remote times are whole
            seconds: some object stores report fractions in listings only.
    """

    location: Location
    size_bytes: int
    modified_unix_seconds: float

    @classmethod
    def of(cls, location: Location, info: pyarrow.fs.FileInfo) -> "FileEntry":
        """Convert Arrow's description of a file."""
        modified = (info.mtime_ns or 0) / 1e9
        return cls(location, int(info.size or 0), modified if location.is_local else float(int(modified)))


def is_damage(error: Exception, location: Location) -> bool:
    """Whether an error of Arrow's parquet reader means damaged data, so that a retry would not help.

    Arrow also raises OSError for undecodable bytes, without an errno. Remote errors never have an errno.
    """
    return not isinstance(error, OSError) or (location.is_local and error.errno is None)
