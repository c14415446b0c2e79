"""Local, S3 and GCS paths behind one URI type; every write is atomic.

pyarrow's filesystems do the work: they read AWS_ENDPOINT_URL and the usual credentials, and Ray Data and
parquet are native to them.
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
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, TypeVar, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from mode_ray.errors import UsageError, WriteError
from mode_ray.util.retry import retry

REMOTE_SCHEMES = ("s3", "gs", "gcs")
_GLOB_CHARACTERS = frozenset("*?[")
_REMOTE_BUFFER_BYTES = 64 << 20
_COPIED_AT_ONCE_BYTES = 16 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_READ_RETRIES = 3
_Read = TypeVar("_Read")


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, bucket: str) -> pyarrow.fs.FileSystem:
    """One filesystem client a bucket and process: building one costs a region lookup."""
    if scheme == "file":
        return pyarrow.fs.LocalFileSystem()
    # Delayed open: a small object takes one request, not the three of a multipart upload. Arrow's retries are left as
    # they are: built from a URI, its S3 client tries an operation for six seconds (31 times, also after 500, 503 and
    # cut connections) and gives up a connection that is silent for three; on Linux its timeouts cannot be changed.
    options = "?allow_delayed_open=true" if scheme == "s3" else ""
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}{options}")
    return filesystem


@dataclass(frozen=True, order=True, slots=True)
class Location:
    """A file or directory by URI: `/data/run`, `file:///data/run`, `s3://bucket/run` or `gs://bucket/run`.

    Build it with `Location.parse`; only the URI crosses process borders.

    Attributes:
        uri: Absolute local path, or `scheme://bucket/path`, without a trailing slash.
    """

    uri: str

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Make a location of a path or URI; relative paths count from the working directory.

        Raises:
            UsageError: The scheme is unknown, a remote URI names no bucket, a file URI names a host.
        """
        if "://" not in text:
            return cls(str(Path(text).expanduser().absolute()))
        parts = urlsplit(text)
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost"):
                raise UsageError(f"{text}: {parts.netloc!r} stands where a host belongs; write file:///PATH")
            return cls(str(Path(parts.path).absolute()))
        if parts.scheme not in REMOTE_SCHEMES:
            raise UsageError(f"{text}: unknown scheme {parts.scheme!r}; use a local path, s3://… or gs://…")
        if not parts.netloc:
            raise UsageError(f"{text}: no bucket named; write {parts.scheme}://BUCKET/PATH")
        return cls(text.rstrip("/"))

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, part: str) -> "Location":
        return Location(f"{self.uri.rstrip('/')}/{part.strip('/')}")

    @property
    def is_local(self) -> bool:
        """Whether this lies on this machine's own filesystem."""
        return "://" not in self.uri

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """The directory that holds this; a bucket, like the root, is its own parent."""
        above = self.uri.rsplit("/", 1)[0]
        return self if above.endswith(":/") else Location(above or "/")

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """The pyarrow filesystem that serves `path`."""
        if self.is_local:
            return _filesystem("file", "")
        parts = urlsplit(self.uri)
        return _filesystem(parts.scheme, parts.netloc)

    @property
    def path(self) -> str:
        """The path as `filesystem` wants it: no scheme, the bucket first."""
        return self.uri if self.is_local else self.uri.split("://", 1)[1]

    def exists(self) -> bool:
        """Whether a file or directory is there."""
        return bool(self._info().type != pyarrow.fs.FileType.NotFound)

    def is_directory(self) -> bool:
        """Whether a directory (or an S3 prefix with objects below it) is there."""
        return bool(self._info().type == pyarrow.fs.FileType.Directory)

    def size_bytes(self) -> int:
        """Size of the file in bytes."""
        return int(self._info().size or 0)

    def _info(self) -> pyarrow.fs.FileInfo:
        return self.filesystem.get_file_info(self.path)

    def files(self, *, recursive: bool = False) -> list["Location"]:
        """Files in this directory, sorted; none where it does not exist.

        Files and directories below it whose names start with a dot are left out.
        """
        return [entry.location for entry in self.entries(recursive=recursive)]

    def entries(self, *, recursive: bool = False) -> list["FileEntry"]:
        """The same files with their sizes and times, as the one listing tells them."""
        selector = pyarrow.fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(
            FileEntry.of(self._sibling(info.path), info)
            for info in infos
            if info.type == pyarrow.fs.FileType.File and "/." not in info.path[len(self.path.rstrip("/")) :]
        )

    def directories(self) -> list["Location"]:
        """Directories in this directory, sorted, as `files`."""
        infos = self.filesystem.get_file_info(pyarrow.fs.FileSelector(self.path, allow_not_found=True))
        found = [self._sibling(info.path.rstrip("/")) for info in infos if info.type == pyarrow.fs.FileType.Directory]
        return sorted(location for location in found if not location.name.startswith("."))

    def glob(self) -> list["Location"]:
        """Files that match this location's wildcards (`*`, `?`, `[…]`; `**` spans directories), sorted."""
        return [entry.location for entry in self.glob_entries()]

    @property
    def has_wildcards(self) -> bool:
        """Whether `glob` would look for more than this one name."""
        return bool(_GLOB_CHARACTERS & set(self.uri))

    def glob_entries(self) -> list["FileEntry"]:
        """What `glob` finds, with sizes and times."""
        if not self.has_wildcards:
            return [FileEntry.of(self, self._info())] if self.exists() else []
        parts = self.uri.split("/")
        first = next(i for i, part in enumerate(parts) if _GLOB_CHARACTERS & set(part))
        root = Location("/".join(parts[:first]) or "/")
        deep = first < len(parts) - 1 or parts[-1] == "**"
        return [entry for entry in root.entries(recursive=deep) if _matches(entry.location.uri.split("/"), parts)]

    def _sibling(self, path: str) -> "Location":
        return Location(path if self.is_local else f"{urlsplit(self.uri).scheme}://{path}")

    def open_input(self) -> pa.NativeFile:
        """Open for random access."""
        return self.filesystem.open_input_file(self.path)

    def complete(self, read: Callable[[], _Read]) -> _Read:
        """Do what reads this file, again where the connection breaks amid the answer.

        Arrow tries a request again until an answer begins; what breaks after that it reports. Errors that say what is
        wrong with the file or the right to it are raised at once, and so is every error of a local file.

        Args:
            read: Opens and reads; it leaves nothing behind where it raises.
        """
        retries = 0 if self.is_local else _READ_RETRIES
        return retry(read, retries, never_on=(FileNotFoundError, PermissionError), first_pause_seconds=0.0)

    def read_bytes(self) -> bytes:
        """The whole file, as it stood at one time."""
        return self.complete(self._read_bytes)

    def _read_bytes(self) -> bytes:
        while True:
            # As a file, not as a stream: a stream's read() asks an object store for a quarter of a megabyte at a time.
            with self.open_input() as source:
                data, version = bytes(source.read(source.size())), source.metadata()
            # An object store is asked for the size first, then for that many bytes: of an object replaced in between
            # they are the head. A local file stays the one that was opened.
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
        """Write a file that appears whole or not at all.

        Local: a temporary name in the same directory, flushed to disk, then renamed. Remote: collected in memory, or
        where it is large on the local disk, then one upload. Nothing appears where the block raises.

        Raises:
            WriteError: The disk is full, the storage refuses, or does not answer.
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
            full = self.parent if self.is_local else tempfile.gettempdir()  # where an upload is collected
            reason = f"no space left on {full} (writing {self.name}): free space and run again"
        else:
            reason = f"{self}: cannot be written ({' '.join(str(error).split())}): mend that and run again"
        return WriteError(f"{reason}; what is finished stays")

    def remove_temporaries(self) -> None:
        """Remove, below a local directory, what writers that were killed left of files they had not finished."""
        if self.is_local:
            for file in Path(self.path).rglob(".*.tmp"):
                if _TEMPORARY.fullmatch(file.name):
                    file.unlink(missing_ok=True)

    def copy_to(self, target: "Location") -> None:
        """Copy this file; the copy appears whole or not at all."""
        with self.open_input() as source, target.open_atomic() as stream:
            size = source.size()
            for start in range(0, size, _COPIED_AT_ONCE_BYTES):
                piece = functools.partial(source.read_at, min(_COPIED_AT_ONCE_BYTES, size - start), start)
                stream.write(self.complete(piece))

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, atomically."""
        with self.open_atomic() as stream:
            stream.write(data)

    def write_text(self, text: str) -> None:
        """Write the whole file as UTF-8, atomically."""
        self.write_bytes(text.encode())

    def write_table(self, table: pa.Table) -> int:
        """Write a parquet file (zstd, with a checksum of every page), atomically.

        Returns:
            Its size in bytes.
        """
        with self.open_atomic() as stream:
            pq.write_table(table, stream, compression="zstd", write_page_checksum=True, **_encodings(table.schema))
            return stream.tell()

    def write_tables(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """The same of a table that comes in parts, each a row group.

        Such tables are large: what arrow's allocator keeps of them for later is given back.
        """
        with self.open_atomic() as stream:
            options = {"compression": "zstd", "write_page_checksum": True, **_encodings(schema)}
            with pq.ParquetWriter(stream, schema, **options) as writer:
                for table in tables:
                    writer.write_table(table)
        pa.default_memory_pool().release_unused()

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        """Read one parquet file; where pages carry checksums, they are verified.

        Raises:
            OSError: A page is damaged, or as the filesystem raises.
        """
        return self.complete(lambda: self._read_table(columns))

    def _read_table(self, columns: list[str] | None) -> pa.Table:
        with self.open_input() as source:
            return pq.ParquetFile(source, page_checksum_verification=True).read(columns=columns)

    def read_parquet_footer(self) -> pq.FileMetaData:
        """Read the footer of a parquet file alone.

        Raises:
            OSError: It is no whole parquet file, or as the filesystem raises.
        """
        return self.complete(self._read_parquet_footer)

    def _read_parquet_footer(self) -> pq.FileMetaData:
        with self.open_input() as source:
            return pq.read_metadata(source)

    def delete(self) -> None:
        """Remove a file or a whole directory; nothing where it is not there."""
        kind = self._info().type
        if kind == pyarrow.fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind != pyarrow.fs.FileType.NotFound:
            self.filesystem.delete_file(self.path)


@dataclass(frozen=True, order=True, slots=True)
class FileEntry:
    """A file as a listing tells it.

    Attributes:
        location: The file.
        size_bytes: Its size.
        modified_unix_seconds: When it was last written; 0 where the filesystem does not tell. Remote times are whole
            seconds: some object stores tell fractions when listing and none when asked for one file.
    """

    location: Location
    size_bytes: int
    modified_unix_seconds: float

    @classmethod
    def of(cls, location: Location, info: pyarrow.fs.FileInfo) -> "FileEntry":
        """From arrow's description of it."""
        modified = (info.mtime_ns or 0) / 1e9
        return cls(location, int(info.size or 0), modified if location.is_local else float(int(modified)))


def is_damage(error: Exception, location: Location) -> bool:
    """Whether an error of arrow's parquet reader is about the bytes themselves, so that trying again is of no use.

    Arrow raises OSError for undecodable bytes too, then without an errno; remote errors never carry one.
    """
    return not isinstance(error, OSError) or (location.is_local and error.errno is None)


def _encodings(schema: pa.Schema) -> dict[str, list[str]]:
    """Encodings by column: numbers with a fraction hardly repeat, so that a dictionary of them only costs time."""
    leaves: dict[bool, list[str]] = {False: [], True: []}
    for field in schema:
        nested = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
        kind = field.type.value_type if nested else field.type
        # As parquet names the one leaf of a list.
        leaves[pa.types.is_floating(kind)].append(f"{field.name}.list.element" if nested else field.name)
    return {"use_dictionary": leaves[False], "use_byte_stream_split": leaves[True]}


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether path parts match pattern parts; `**` stands for any number of directories."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
