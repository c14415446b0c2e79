"""Runs a worker over work units: reads the next unit and writes the last one while the worker computes.

Both I/O steps are retried. A read error that stays quarantines the unit; a write error that stays ends the stage. An
error of the computation is a defect, and ends the stage too.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from mode_ray.errors import DataError, WriteError
from mode_ray.run_directory import unit_output
from mode_ray.stages.manifest import UnitRecord, read_record, write_unit
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.retry import FIRST_PAUSE_SECONDS, retry

_Result = TypeVar("_Result")


class UnitWorker(Protocol):
    """What a stage does to one work unit. A worker lives as long as its actor, so it may hold a model."""

    def read(self, work_unit: WorkUnit) -> Any:  # noqa: ANN401 - each worker's own
        """Read the unit; runs in a thread, ahead of `compute`."""
        ...

    def compute(self, work_unit: WorkUnit, source: Any) -> tuple[pa.Table, UnitRecord]:  # noqa: ANN401
        """Turn what was read into the unit's rows and its record."""
        ...


class UnitActor:
    """Runs a worker over work units, with one thread that reads and one that writes.

    Args:
        worker: What to do with a unit.
        directory: Where the outputs belong.
        attempt: Name of the stage's invocation.
        retries: Further attempts after an I/O error.
        first_pause_seconds: Pause before the first of them; pauses double.
    """

    def __init__(
        self,
        worker: UnitWorker,
        directory: Location,
        attempt: str,
        retries: int,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._worker = worker
        self._directory = directory
        self._attempt = attempt
        self._retries = retries
        self._first_pause_seconds = first_pause_seconds
        self._reader = ThreadPoolExecutor(1, "read")
        self._writer = ThreadPoolExecutor(1, "write")

    def process(self, work_units: Sequence[WorkUnit]) -> Iterator[UnitRecord]:
        """Process shards in order; yields one record each, delayed by one unit.

        Units that this invocation has finished already, in an actor that was lost with its records, are skipped. A
        unit that cannot be read becomes a record with `error` set.

        Raises:
            WriteError: An output could not be written in any attempt.
            Exception: A defect; a note names the source file.
        """
        ahead = self._reader.submit(self._timed_read, work_units[0])
        writing: Future[UnitRecord] | None = None
        for work_unit, following in zip_longest(work_units, work_units[1:]):
            began = time.monotonic()
            source, read_seconds = self._result(ahead, work_unit)
            if following is not None:
                ahead = self._reader.submit(self._timed_read, following)
            if writing is not None:
                yield writing.result()
            if isinstance(source, UnitRecord):
                writing = Future()
                writing.set_result(source)
            else:
                table, record = self._compute(work_unit, source)
                record = replace(record, read_seconds=round(read_seconds, 3))
                writing = self._writer.submit(self._write, work_unit, table, record, began)
        if writing is not None:
            yield writing.result()

    def _timed_read(self, work_unit: WorkUnit) -> tuple[Any, float]:
        """What `_read` returns, and the seconds that it took."""
        began = time.monotonic()
        source = self._read(work_unit)
        return source, time.monotonic() - began

    def _read(self, work_unit: WorkUnit) -> Any:  # noqa: ANN401
        """What the worker reads; a record if the unit is finished already, or quarantined."""
        finished = self._finished(work_unit)
        if finished is not None:
            return finished
        try:
            return self._retry(partial(self._worker.read, work_unit))
        except DataError as error:
            return quarantined(work_unit, str(error), self._attempt)
        except OSError as error:
            reason = f"{work_unit.uri}: I/O error after {self._retries} retries: {error}"
            return quarantined(work_unit, reason, self._attempt)

    def _finished(self, work_unit: WorkUnit) -> UnitRecord | None:
        """The record of the unit's output, if this invocation wrote it."""
        output = self._output(work_unit)

        def look() -> UnitRecord | None:
            try:
                return read_record(output)
            except FileNotFoundError:
                return None

        try:
            record = self._retry(look)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise WriteError(f"{output}: cannot be read ({reason}): fix this and run again") from error
        # An output of an earlier invocation is out of date: otherwise the unit would not be in the list.
        return record if record is not None and record.attempt == self._attempt else None

    def _result(self, ahead: "Future[tuple[Any, float]]", work_unit: WorkUnit) -> tuple[Any, float]:
        try:
            return ahead.result()
        except Exception as error:
            error.add_note(f"while reading {work_unit.uri}")
            raise

    def _compute(self, work_unit: WorkUnit, source: Any) -> tuple[pa.Table, UnitRecord]:  # noqa: ANN401
        try:
            table, record = self._worker.compute(work_unit, source)
        except Exception as error:
            error.add_note(f"while processing {work_unit.uri}")
            raise
        return table, replace(with_source(record, work_unit), attempt=self._attempt)

    def _write(self, work_unit: WorkUnit, table: pa.Table, record: UnitRecord, began: float) -> UnitRecord:
        def write() -> UnitRecord:
            timed = replace(record, seconds=round(time.monotonic() - began, 3))
            return write_unit(self._output(work_unit), table, timed)

        return self._retry(write)

    def _retry(self, step: Callable[[], _Result]) -> _Result:
        return retry(step, self._retries, first_pause_seconds=self._first_pause_seconds)

    def _output(self, work_unit: WorkUnit) -> Location:
        return unit_output(self._directory, work_unit.unit)


def quarantined(work_unit: WorkUnit, reason: str, attempt: str) -> UnitRecord:
    """The record of a unit that is left out, with the reason."""
    record = UnitRecord(
        unit=work_unit.unit,
        source=work_unit.uri,
        error=reason,
        attempt=attempt,
        finished_unix_seconds=round(time.time(), 3),
    )
    return with_source(record, work_unit)


def with_source(record: UnitRecord, work_unit: WorkUnit) -> UnitRecord:
    """Add the source's size and time to a record, by which a replaced source is detected."""
    return replace(
        record, source_bytes=work_unit.size_bytes, source_modified_unix_seconds=work_unit.modified_unix_seconds
    )
