"""Local, S3 and GCS paths behind one URI type; every write is atomic.

pyarrow's filesystems do the work: they read AWS_ENDPOINT_URL and the usual credentials, and Ray Data and
parquet are native to them.
"""

import contextlib
import functools
import io
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from mode_ray.errors import UsageError

REMOTE_SCHEMES = ("s3", "gs", "gcs")
_GLOB_CHARACTERS = frozenset("*?[")


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, bucket: str) -> pyarrow.fs.FileSystem:
    """One filesystem client a bucket and process: building one costs a region lookup."""
    if scheme == "file":
        return pyarrow.fs.LocalFileSystem()
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}")
    return filesystem


@dataclass(frozen=True, order=True)
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
        selector = pyarrow.fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(
            self._sibling(info.path)
            for info in infos
            if info.type == pyarrow.fs.FileType.File and "/." not in info.path[len(self.path.rstrip("/")) :]
        )

    def glob(self) -> list["Location"]:
        """Files that match this location's wildcards (`*`, `?`, `[…]`; `**` spans directories), sorted."""
        parts = self.uri.split("/")
        first = next((i for i, part in enumerate(parts) if _GLOB_CHARACTERS & set(part)), None)
        if first is None:
            return [self] if self.exists() else []
        root = Location("/".join(parts[:first]) or "/")
        deep = first < len(parts) - 1 or parts[-1] == "**"
        return [file for file in root.files(recursive=deep) if _matches(file.uri.split("/"), parts)]

    def _sibling(self, path: str) -> "Location":
        return Location(path if self.is_local else f"{urlsplit(self.uri).scheme}://{path}")

    def open_input(self) -> pa.NativeFile:
        """Open for random access."""
        return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        return self.read_bytes().decode()

    @contextlib.contextmanager
    def open_atomic(self) -> Iterator[IO[bytes]]:
        """Write a file that appears whole or not at all.

        Local: a temporary name in the same directory, flushed to disk, then renamed. Remote: collected in
        memory, then one upload. Nothing appears where the block raises.
        """
        if not self.is_local:
            buffer = io.BytesIO()
            yield buffer
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(buffer.getbuffer())
            return
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

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, atomically."""
        with self.open_atomic() as stream:
            stream.write(data)

    def write_text(self, text: str) -> None:
        """Write the whole file as UTF-8, atomically."""
        self.write_bytes(text.encode())

    def write_table(self, table: pa.Table) -> int:
        """Write a parquet file (zstd), atomically.

        Returns:
            Its size in bytes.
        """
        with self.open_atomic() as stream:
            pq.write_table(table, stream, compression="zstd")
            return stream.tell()

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        """Read one parquet file."""
        with self.open_input() as source:
            return pq.ParquetFile(source).read(columns=columns)

    def delete(self) -> None:
        """Remove a file or a whole directory; nothing where it is not there."""
        kind = self._info().type
        if kind == pyarrow.fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind != pyarrow.fs.FileType.NotFound:
            self.filesystem.delete_file(self.path)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether path parts match pattern parts; `**` stands for any number of directories."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
