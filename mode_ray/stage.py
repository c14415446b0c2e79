"""The stage contract: a stage is done when its manifest stands and its config fingerprint matches.

A stage's directory holds `started.json` (the fields that decide its output, written first), one output a
work unit, and at the end `units.parquet` (one row a unit) and `manifest.json` (written last). A unit's output
carries its own record in the parquet footer, so what is on disk is the truth about what is finished: a killed
run needs no other memory.
"""

import hashlib
import json
import platform
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mode_ray.config import config_hash
from mode_ray.errors import UsageError
from mode_ray.storage import Location

MANIFEST = "manifest.json"
STARTED = "started.json"
UNITS = "units.parquet"
FOOTER_KEY = b"mode_ray.unit"
_FOOTER_READERS = 16
_VERSIONED_PACKAGES = (
    "mode_ray",
    "ray",
    "torch",
    "open_clip_torch",
    "pyarrow",
    "numpy",
    "faiss-cpu",
    "faiss-gpu",
)

StageState = Literal["absent", "started", "done"]


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What became of one work unit.

    Attributes:
        unit: Name of the unit; its output is `<unit>.parquet`.
        source: URI it was made of.
        rows_in: Captions found in the source.
        rows_out: Captions written.
        refused: Captions left out, by reason; rows_in = rows_out + sum of refused, but where only a sample
            was asked for.
        examples: For each reason, where the first refused caption stands.
        bytes_out: Size of the output.
        content_hash: Hash of the output's rows.
        seconds: Wall time of the unit.
        attempt: Name of the stage invocation that made it.
        finished_unix_seconds: When it was written.
        error: Set where the source could not be read: the unit is quarantined and has no output.
    """

    unit: str
    source: str
    rows_in: int = 0
    rows_out: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    bytes_out: int = 0
    content_hash: str = ""
    seconds: float = 0.0
    attempt: str = ""
    finished_unix_seconds: float = 0.0
    error: str | None = None

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "UnitRecord":
        """From `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The summary of a finished stage; `manifest.json`.

    Attributes:
        stage: Name of the stage.
        config_hash: Hash of `fields`.
        fields: Every config field and input hash that decides the output.
        units: Number of work units.
        rows_in: Sum over units.
        rows_out: Sum over units.
        refused: Sum over units, by reason.
        quarantined: Source and reason of every unit that was left out.
        content_hash: Hash over the outputs' rows, the same for the same input and config.
        seconds: Wall time of the invocation that finished the stage.
        attempts: Number of invocations that contributed units.
        summary: Figures of this stage's own.
        versions: Package versions.
    """

    stage: str
    config_hash: str
    fields: Mapping[str, object]
    units: int
    rows_in: int
    rows_out: int
    refused: Mapping[str, int]
    quarantined: Mapping[str, str]
    content_hash: str
    seconds: float
    attempts: int
    summary: Mapping[str, Any]
    versions: Mapping[str, str]


class Stage:
    """One stage of one run: where its outputs lie and whether they are there.

    Args:
        name: The stage's name, as on the command line.
        directory: Where its outputs lie.
        fields: Dotted config fields and `inputs.<stage>` hashes that decide its output.
    """

    def __init__(self, name: str, directory: Location, fields: Mapping[str, object]) -> None:
        self.name = name
        self.directory = directory
        self.fields = dict(fields)
        self.attempt = f"{int(time.time())}-{secrets.token_hex(3)}"
        self._began = time.monotonic()

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the stage is not done."""
        return read_manifest(self.directory)

    def state(self) -> StageState:
        """How far the stage is.

        Raises:
            UsageError: Its directory was begun with other fields; the message names those that differ.
        """
        started = self.directory / STARTED
        if not started.exists():
            return "absent"
        self._refuse_other_fields(json.loads(started.read_text())["fields"])
        return "done" if (self.directory / MANIFEST).exists() else "started"

    def begin(self, units: int) -> None:
        """Claim the directory for this config; called before the first output is written."""
        self._began = time.monotonic()
        if self.state() == "absent":
            note = {
                "stage": self.name,
                "units": units,
                "fields": self.fields,
                "began_unix_seconds": time.time(),
            }
            (self.directory / STARTED).write_text(json.dumps(note, indent=1))

    def output(self, unit: str) -> Location:
        """Where a unit's output belongs."""
        return self.directory / f"{unit}.parquet"

    def write_unit(self, table: pa.Table, record: UnitRecord) -> UnitRecord:
        """Write a unit's rows with its completed record in the footer; see `write_unit`."""
        return write_unit(self.output(record.unit), table, record)

    def finished_units(self) -> dict[str, UnitRecord]:
        """Records of all outputs that stand, by unit."""
        files = [
            file
            for file in self.directory.files(recursive=True)
            if file.name.endswith(".parquet") and file.name != UNITS
        ]
        with ThreadPoolExecutor(_FOOTER_READERS) as readers:
            records = list(readers.map(_read_record, files))
        return {record.unit: record for record in records}

    def finish(self, records: Iterable[UnitRecord], summary: Mapping[str, Any]) -> Manifest:
        """Write the list of units, then the manifest."""
        ordered = sorted(records, key=lambda record: record.unit)
        (self.directory / UNITS).write_table(_units_table(ordered))
        manifest = Manifest(
            stage=self.name,
            config_hash=config_hash(self.fields),
            fields=self.fields,
            units=len(ordered),
            rows_in=sum(record.rows_in for record in ordered),
            rows_out=sum(record.rows_out for record in ordered),
            refused=count_refused(ordered),
            quarantined={record.source: record.error for record in ordered if record.error is not None},
            content_hash=combined_hash(record.content_hash for record in ordered),
            seconds=round(time.monotonic() - self._began, 3),
            attempts=len({record.attempt for record in ordered}),
            summary=summary,
            versions=package_versions(),
        )
        (self.directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
        return manifest

    def _refuse_other_fields(self, earlier: Mapping[str, object]) -> None:
        if config_hash(earlier) == config_hash(self.fields):
            return
        names = sorted(set(earlier) | set(self.fields))
        changed = [
            f"{name} was {earlier.get(name)!r}, is {self.fields.get(name)!r}"
            for name in names
            if earlier.get(name) != self.fields.get(name)
        ]
        raise UsageError(
            f"{self.directory}: stage {self.name} was begun with another config: {'; '.join(changed)}. "
            "Choose another run directory, or delete this stage's directory (and those of the later stages)"
        )


def read_manifest(directory: Location) -> Manifest | None:
    """The manifest of the stage in a directory, or None where there is none."""
    location = directory / MANIFEST
    return Manifest(**json.loads(location.read_text())) if location.exists() else None


def read_units(directory: Location) -> list[UnitRecord]:
    """The unit records of a finished stage, in order of their names."""
    return [
        UnitRecord.from_json(str(text)) for text in (directory / UNITS).read_table(["record"])["record"].to_pylist()
    ]


def write_unit(output: Location, table: pa.Table, record: UnitRecord) -> UnitRecord:
    """Write one unit's rows, atomically, its record in the footer.

    Returns:
        The record with the hash, size and time of what was written (the footer's copy lacks only the size).
    """
    finished = UnitRecord(
        **{
            **asdict(record),
            "content_hash": table_hash(table),
            "finished_unix_seconds": round(time.time(), 3),
        }
    )
    footer = {**(table.schema.metadata or {}), FOOTER_KEY: finished.to_json().encode()}
    size = output.write_table(table.replace_schema_metadata(footer))
    return UnitRecord(**{**asdict(finished), "bytes_out": size})


def table_hash(table: pa.Table) -> str:
    """BLAKE2b (16 hex digits) over a table's schema and rows, independent of chunks and compression."""
    digest = hashlib.blake2b(digest_size=8)
    plain = table.replace_schema_metadata(None).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain)
    digest.update(sink.getvalue())
    return digest.hexdigest()


def combined_hash(hashes: Iterable[str]) -> str:
    """One hash over several, in their order."""
    return hashlib.blake2b("\n".join(hashes).encode(), digest_size=8).hexdigest()


def count_refused(records: Iterable[UnitRecord]) -> dict[str, int]:
    """Refused captions by reason, over all units."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.refused)
    return dict(sorted(total.items()))


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape the outputs."""
    versions = {"python": platform.python_version()}
    for package in _VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_record(file: Location) -> UnitRecord:
    with file.open_input() as source:
        footer = pq.read_metadata(source)
    note = (footer.metadata or {}).get(FOOTER_KEY)
    if note is None:
        raise UsageError(f"{file}: not an output of this stage (no unit record in its footer): remove it")
    record = UnitRecord.from_json(note.decode())
    return UnitRecord(**{**asdict(record), "bytes_out": file.size_bytes()})


def _units_table(records: Sequence[UnitRecord]) -> pa.Table:
    return pa.table(
        {
            "unit": pa.array([record.unit for record in records], pa.string()),
            "source": pa.array([record.source for record in records], pa.string()),
            "rows_in": pa.array([record.rows_in for record in records], pa.int64()),
            "rows_out": pa.array([record.rows_out for record in records], pa.int64()),
            "seconds": pa.array([record.seconds for record in records], pa.float64()),
            "attempt": pa.array([record.attempt for record in records], pa.string()),
            "finished_unix_seconds": pa.array([record.finished_unix_seconds for record in records], pa.float64()),
            "error": pa.array([record.error for record in records], pa.string()),
            "record": pa.array([record.to_json() for record in records], pa.string()),
        }
    )
