"""The records of a stage's finished units, and the journal that makes them fast to read.

Without a journal, an invocation that resumes would read the footer of every output: one request per unit. The outputs
remain the truth about what is finished: a record counts if its output exists and has the size in the record.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import pyarrow as pa

from mode_ray.errors import DataError, WriteError
from mode_ray.run_directory import JOURNAL_DIRECTORY, JOURNAL_SUFFIX, UNITS, is_unit_output
from mode_ray.stages.manifest import UnitRecord, read_record, record_book
from mode_ray.stages.packed import PackedMapping
from mode_ray.stages.unit_table import units_table
from mode_ray.storage import Location, is_damage

_RECORDS_PER_FILE = 1000
_FLUSH_SECONDS = 30.0
_READERS = 16
_FOOTER_READERS = 32
_FOOTERS_AT_ONCE = 4096


class RecordJournal:
    """Writes the journal of one invocation; a context manager that writes the rest at its end.

    A driver that is killed loses at most a thousand records, or those of half a minute; their footers are read then.

    Args:
        directory: The stage's.
        attempt: Name of the invocation.
    """

    def __init__(self, directory: Location, attempt: str) -> None:
        self._directory = directory / JOURNAL_DIRECTORY
        self._attempt = attempt
        self._files = 0
        self._waiting: list[UnitRecord] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._flush()
        except WriteError:
            if error is None:
                raise
            # The error that ends the stage is the one to report. The footers of these units will be read instead.

    def add(self, record: UnitRecord) -> None:
        """Add the record of a unit."""
        self._waiting.append(record)
        if len(self._waiting) >= _RECORDS_PER_FILE or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            name = f"{self._attempt}-{self._files:06d}{JOURNAL_SUFFIX}"
            (self._directory / name).write_table(units_table(self._waiting))
            self._files += 1
        self._waiting, self._flushed = [], time.monotonic()


def finished_units(directory: Location) -> PackedMapping[UnitRecord]:
    """Records of all outputs in a stage's directory, by unit: from the journal, or from the footers of those it lacks.

    An object store is asked for the listing, for a file of every thousand units, and for the other footers.

    Raises:
        DataError: A file is damaged.
        UsageError: A file is not a unit's output.
    """
    book, left, journal = record_book(), dict[str, int](), list[Location]()
    below = len(directory.uri.rstrip("/")) + 1
    for file in directory.entries(recursive=True):
        if is_unit_output(file.location.name):
            left[file.location.uri[below:]] = file.size_bytes
        elif file.location.name.endswith(JOURNAL_SUFFIX):
            journal.append(file.location)
        elif file.location == directory / UNITS:  # of a stage that was finished before: read first
            journal.insert(0, file.location)
    if not left:
        return book
    for text in _journalled(journal):
        record = json.loads(text)
        if left.get(f"{record['unit']}.parquet") == record.get("bytes_out"):
            book.put_text(record["unit"], text)
    for unit in book:
        del left[f"{unit}.parquet"]
    outputs = [(directory / name, size_bytes) for name, size_bytes in left.items()]
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        for start in range(0, len(outputs), _FOOTERS_AT_ONCE):
            for record in readers.map(_footer_record, outputs[start : start + _FOOTERS_AT_ONCE]):
                book[record.unit] = record
    return book


def _journalled(files: Sequence[Location]) -> Iterator[str]:
    """The records in files of a journal as JSON, in order; those of a few files are in memory at a time."""
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(files), _READERS):
            for texts in readers.map(_read_texts, files[start : start + _READERS]):
                for chunk in texts.chunks:
                    yield from chunk.to_pylist()


def _read_texts(file: Location) -> pa.ChunkedArray:
    try:
        return file.read_table(["record"])["record"]
    except (pa.ArrowInvalid, OSError) as error:
        if not is_damage(error, file):
            raise
        raise DataError(f"{file}: damaged ({' '.join(str(error).split())}): delete it and run again") from None


def _footer_record(output: tuple[Location, int]) -> UnitRecord:
    return read_record(*output)
