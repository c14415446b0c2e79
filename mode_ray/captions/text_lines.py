"""Lines of text shards, plain or compressed, in bounded memory."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator

import pyarrow as pa

from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

MAX_LINE_BYTES = 1 << 20
_BUFFER_BYTES = 4 << 20
_LOOKED_AT_BYTES = 4096
_UTF8_MARK = b"\xef\xbb\xbf"
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC_BYTES = max(map(len, _COMPRESSIONS))
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x04\x22\x4d\x18": "lz4"}
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class Lines:
    """Iterates over the lines of a stream.

    Args:
        stream: A buffered stream at its beginning.
        max_bytes: Longer lines are cut to this length.

    Attributes:
        cut: Whether the last line was cut.
    """

    def __init__(self, stream: io.BufferedIOBase, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self.cut = False

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> bytes:
        line = self._stream.readline(self._max_bytes)
        if not line:
            raise StopIteration
        self.cut = False
        rest = line
        while not rest.endswith(b"\n"):
            rest = self._stream.readline(self._max_bytes)
            if not rest:
                break
            self.cut = True
        return line


@contextlib.contextmanager
def open_lines(work_unit: WorkUnit) -> Iterator[Lines]:
    """Open a text shard. Compression is detected by the first bytes, and a byte order mark is skipped.

    Raises:
        DataError: The file does not exist, is not UTF-8 text, or is truncated or damaged compressed data. Reading
            lines raises it too.
    """
    location = work_unit.location
    compression = None
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(location.filesystem.open_input_stream(location.path, compression=None))
            stream = io.BufferedReader(raw, _BUFFER_BYTES)
            head = stream.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
            compression = next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)
            if compression is not None:
                stream = io.BufferedReader(_decompressed(stack, stream, compression), _BUFFER_BYTES)
            _require_text(work_unit, stream.peek(_LOOKED_AT_BYTES)[:_LOOKED_AT_BYTES])
            if stream.peek(len(_UTF8_MARK)).startswith(_UTF8_MARK):
                stream.read(len(_UTF8_MARK))
            yield Lines(stream, MAX_LINE_BYTES)
    except FileNotFoundError:
        raise DataError(f"{work_unit.uri}: no such file") from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowInvalid) as error:
        if not _is_damage(error, compression):
            raise
        raise DataError(
            f"{work_unit.uri}: truncated or damaged {compression} ({error}); replace or remove it"
        ) from None


def _decompressed(stack: contextlib.ExitStack, stream: io.BufferedReader, compression: str) -> object:
    match compression:
        case "gzip":
            return stack.enter_context(gzip.GzipFile(fileobj=stream))
        case "bzip2":
            return stack.enter_context(bz2.BZ2File(stream))
        case "xz":
            return stack.enter_context(lzma.LZMAFile(stream))
        case _:
            return stack.enter_context(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), compression))


def _is_damage(error: Exception, compression: str | None) -> bool:
    """Whether an error is one of a decompressor. Those of bzip2 and zstd are OSErrors, like those of the storage."""
    if compression is None:
        return False
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return any(text in str(error) for text in ("Invalid data stream", "ZSTD", "Truncated compressed stream"))
    return True


def _require_text(work_unit: WorkUnit, head: bytes) -> None:
    """Raise `DataError` if a file does not begin like UTF-8 text."""
    archive = next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None)
    if archive is not None:
        raise DataError(f"{work_unit.uri}: {archive} data, which cannot be read; unpack it, or use gzip or zstd")
    encoding = next((name for mark, name in _OTHER_ENCODINGS.items() if head.startswith(mark)), None)
    if encoding is not None:
        raise DataError(f"{work_unit.uri}: {encoding} text; convert it to UTF-8, for example with iconv")
    if b"\0" in head:
        raise DataError(
            f"{work_unit.uri}: binary data; a {work_unit.format} file must be UTF-8 text; replace or remove it"
        )
