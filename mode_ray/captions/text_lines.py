"""Lines of text shards, plain or gzipped, in bounded memory."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator

from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

MAX_LINE_BYTES = 1 << 20
_BUFFER_BYTES = 4 << 20
_LOOKED_AT_BYTES = 4096
_GZIP_MAGIC = b"\x1f\x8b"


class Lines:
    """Iterates over the lines of a stream.

    Args:
        stream: A buffered stream at its beginning.
        max_bytes: Longer lines are cut to this length.

    Attributes:
        cut: Whether the last line was cut.
        count: Number of lines read.
    """

    def __init__(self, stream: io.BufferedIOBase, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self.cut = False
        self.count = 0

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> bytes:
        line = self._stream.readline(self._max_bytes)
        if not line:
            raise StopIteration
        self.count += 1
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
    """Open a text shard; gzip is detected by its first bytes.

    Raises:
        DataError: The file does not exist, is binary, or is truncated or damaged gzip. Reading lines raises it too.
    """
    location = work_unit.location
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(location.filesystem.open_input_stream(location.path, compression=None))
            stream: io.BufferedReader | gzip.GzipFile = io.BufferedReader(raw, _BUFFER_BYTES)
            if stream.peek(2)[:2] == _GZIP_MAGIC:
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            if b"\0" in stream.peek(_LOOKED_AT_BYTES)[:_LOOKED_AT_BYTES]:
                raise DataError(
                    f"{work_unit.uri}: binary data; a {work_unit.format} file must be UTF-8 text; replace or remove it"
                )
            yield Lines(stream, MAX_LINE_BYTES)
    except FileNotFoundError:
        raise DataError(f"{work_unit.uri}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{work_unit.uri}: truncated or damaged gzip ({error}); replace or remove it") from None
