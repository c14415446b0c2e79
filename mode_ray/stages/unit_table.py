"""The records of a finished stage as a table, and their totals for the manifest."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from mode_ray.stages.packed import PackedMapping

if TYPE_CHECKING:  # manifest imports this module
    from mode_ray.stages.manifest import UnitRecord

_UNITS_AT_ONCE = 1024
UNITS_SCHEMA = pa.schema(
    {
        "unit": pa.string(),
        "source": pa.string(),
        "source_bytes": pa.int64(),
        "source_modified_unix_seconds": pa.float64(),
        "rows_in": pa.int64(),
        "rows_out": pa.int64(),
        "seconds": pa.float64(),
        "attempt": pa.string(),
        "finished_unix_seconds": pa.float64(),
        "error": pa.string(),
        "record": pa.string(),
    }
)


class HashOfHashes:
    """BLAKE2b (16 hex digits) over texts in order, added one at a time."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)
        self._separator = b""

    def add(self, text: str) -> None:
        """Add the next text."""
        self._digest.update(self._separator + text.encode())
        self._separator = b"\n"

    def hexdigest(self) -> str:
        """The hash of all texts so far."""
        return self._digest.hexdigest()


class UnitTotals:
    """The totals of a manifest, added up in one pass."""

    def __init__(self) -> None:
        self.rows_in = self.rows_out = 0
        self.refused: Counter[str] = Counter()
        self.quarantined: dict[str, str] = {}
        self.content = HashOfHashes()
        self.attempts: set[str] = set()

    def of_parts(self, book: "PackedMapping[UnitRecord]") -> "Iterator[list[UnitRecord]]":
        """Yield the records in order of their names, a thousand at a time, and add them to the totals."""
        left = book.sorted_items()
        while part := [record for _, record in islice(left, _UNITS_AT_ONCE)]:
            for record in part:
                self._add(record)
            yield part

    def _add(self, record: "UnitRecord") -> None:
        self.rows_in += record.rows_in
        self.rows_out += record.rows_out
        self.refused.update(record.refused)
        self.content.add(record.content_hash)
        self.attempts.add(record.attempt)
        if record.error is not None:
            self.quarantined[record.source] = record.error


def units_table(records: "Sequence[UnitRecord]") -> pa.Table:
    """Rows of the table for some records: frequent fields as columns, and the whole record as JSON."""
    fields = [name for name in UNITS_SCHEMA.names if name != "record"]
    columns = {name: [getattr(record, name) for record in records] for name in fields}
    return pa.table({**columns, "record": [record.to_json() for record in records]}, schema=UNITS_SCHEMA)
