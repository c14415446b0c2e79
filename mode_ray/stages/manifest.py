"""The stage contract: a stage is done when its manifest stands and its config fingerprint matches.

A stage's directory holds `started.json` (the fields that decide its output, written first), one output a
work unit, and at the end `units.parquet` (one row a unit) and `manifest.json` (written last). A unit's output
carries its own record in the parquet footer, so what is on disk is the truth about what is finished: a killed
run needs no other memory. The journal (`mode_ray.stages.journal`) has copies of the records, which are faster to read.
"""

import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from mode_ray.config.base import config_hash, with_current_names
from mode_ray.errors import DataError, UsageError
from mode_ray.run_directory import (
    JOURNAL_DIRECTORY,
    MANIFEST,
    RUN_CONFIG,
    STARTED,
    UNITS,
    is_unit_output,
    unit_output,
)
from mode_ray.stages.packed import PackedMapping
from mode_ray.stages.unit_table import UNITS_SCHEMA, HashOfHashes, UnitTotals, units_table
from mode_ray.storage import Location, is_damage
from mode_ray.util.versions import package_versions

if TYPE_CHECKING:  # it imports this module
    from mode_ray.stages.resume import UnitPlan
    from mode_ray.stages.work_unit import WorkUnit

FOOTER_KEY = b"mode_ray.unit"

StageState = Literal["absent", "started", "done"]


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What became of one work unit.

    Attributes:
        unit: Name of the unit; its output is `<unit>.parquet`.
        source: URI it was made of.
        source_bytes: Size of the source when it was listed.
        source_modified_unix_seconds: When the source was last written, by then; 0 where that is not known.
        rows_in: Captions found in the source.
        rows_out: Captions written.
        refused: Captions left out, by reason; rows_in = rows_out + sum of refused, but where only a sample
            was asked for.
        examples: For each reason, where the first refused caption stands.
        bytes_out: Size of the output.
        content_hash: Hash of the output's rows.
        seconds: Wall time of the unit in its actor, the time that it waited for its source included.
        read_seconds: Time that its source took to be read, mostly while the actor computed the unit before.
        attempt: Name of the stage invocation that made it.
        finished_unix_seconds: When it was written.
        error: Set where the source could not be read: the unit is quarantined and has no output.
    """

    unit: str
    source: str
    source_bytes: int = 0
    source_modified_unix_seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    bytes_out: int = 0
    content_hash: str = ""
    seconds: float = 0.0
    read_seconds: float = 0.0
    attempt: str = ""
    finished_unix_seconds: float = 0.0
    error: str | None = None

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(vars(self))

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
        free: Names of those that may change: the units know themselves whether they still suffice, and the stage is
            done for the values in its manifest alone.

    Attributes:
        planned: The plan that `plan_units` made for some work units and nobody has carried out yet.
    """

    planned: "tuple[Sequence[WorkUnit], UnitPlan] | None" = None

    def __init__(
        self, name: str, directory: Location, fields: Mapping[str, object], free: Collection[str] = ()
    ) -> None:
        self.name = name
        self.directory = directory
        self.fields = dict(fields)
        self._free = frozenset(free)
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
        done = self._manifest_fits() if self._free else (self.directory / MANIFEST).exists()
        return "done" if done else "started"

    def begin(self, units: int) -> None:
        """Claim the directory for this config; called before the first output is written.

        Begun again with another number of units (a source was replaced), the note tells the new one.
        """
        self._began = time.monotonic()
        started = self.directory / STARTED
        note: dict[str, Any] = {}
        if self.state() != "absent":
            note = json.loads(started.read_text())
        if note.get("units") != units:
            first = {"stage": self.name, "fields": self.fields, "began_unix_seconds": time.time()}
            started.write_text(json.dumps({**first, **note, "units": units}, indent=1))

    def output(self, unit: str) -> Location:
        """Where a unit's output belongs."""
        return unit_output(self.directory, unit)

    def write_unit(self, table: pa.Table, record: UnitRecord) -> UnitRecord:
        """Write a unit's rows with its completed record in the footer; see `write_unit`."""
        return write_unit(self.output(record.unit), table, record)

    def finish(
        self, records: Iterable[UnitRecord] | PackedMapping[UnitRecord], summary: Mapping[str, Any]
    ) -> Manifest:
        """Write the list of units, in order of their names, then the manifest.

        A worker that was killed while it wrote left a file unfinished; another has done its unit again since.

        Args:
            records: Of all units; those of a `record_book` are not all built at once.
            summary: Figures of this stage's own.
        """
        self.directory.remove_temporaries()
        book = records if isinstance(records, PackedMapping) else record_book(records)
        totals = UnitTotals()
        parts = (units_table(part) for part in totals.of_parts(book))
        (self.directory / UNITS).write_tables(UNITS_SCHEMA, parts)
        manifest = Manifest(
            stage=self.name,
            config_hash=config_hash(self.fields),
            fields=self.fields,
            units=len(book),
            rows_in=totals.rows_in,
            rows_out=totals.rows_out,
            refused=dict(sorted(totals.refused.items())),
            quarantined=totals.quarantined,
            content_hash=totals.content.hexdigest(),
            seconds=round(time.monotonic() - self._began, 3),
            attempts=len(totals.attempts),
            summary=summary,
            versions=package_versions(),
        )
        (self.directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
        (self.directory / JOURNAL_DIRECTORY).delete()  # the list of units has the same records
        return manifest

    def _manifest_fits(self) -> bool:
        manifest = self.manifest()
        own = {name: self.fields[name] for name in self._free}
        return manifest is not None and config_hash(own) == config_hash(
            {name: manifest.fields.get(name) for name in self._free}
        )

    def _refuse_other_fields(self, earlier: Mapping[str, object]) -> None:
        before, now = (
            {name: value for name, value in fields.items() if name not in self._free}
            for fields in (with_current_names(earlier), self.fields)
        )
        if config_hash(before) == config_hash(now):
            return
        changed = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(set(before) | set(now))
            if before.get(name) != now.get(name)
        ]
        raise UsageError(
            f"{self.directory}: stage {self.name} was begun with another config: {'; '.join(changed)}. "
            f"To resume with the values it was begun with, give --config {self.directory.parent / RUN_CONFIG}; for "
            "others, choose another run directory, or delete this stage's directory (and those of the later stages)"
        )


def record_book(records: Iterable[UnitRecord] = ()) -> PackedMapping[UnitRecord]:
    """Records by unit, held so that a quarter of a million of them fit a small driver."""
    book = PackedMapping(UnitRecord.to_json, UnitRecord.from_json)
    for record in records:
        book[record.unit] = record
    return book


def read_manifest(directory: Location) -> Manifest | None:
    """The manifest of the stage in a directory, or None where there is none.

    Raises:
        DataError: The file is not the JSON of a manifest.
    """
    location = directory / MANIFEST
    if not location.exists():
        return None
    try:
        values = json.loads(location.read_text())
        return Manifest(**{**values, "fields": with_current_names(values["fields"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{location}: not a manifest ({error}); delete it and run the stage again") from None


def unit_outputs(directory: Location) -> list[Location]:
    """The units' outputs in a stage's directory, by their names alone."""
    return [file for file in directory.files(recursive=True) if is_unit_output(file.name)]


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
    combined = HashOfHashes()
    for text in hashes:
        combined.add(text)
    return combined.hexdigest()


def count_refused(records: Iterable[UnitRecord]) -> dict[str, int]:
    """Refused captions by reason, over all units."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.refused)
    return dict(sorted(total.items()))


def read_record(file: Location, size_bytes: int | None = None) -> UnitRecord:
    """The record in the footer of a unit's output.

    Args:
        file: The output.
        size_bytes: Its size, if a listing has given it.

    Raises:
        FileNotFoundError: There is no such output.
        DataError: The file is damaged.
        UsageError: The file is not a unit's output.
    """
    try:
        footer = file.read_parquet_footer(size_bytes)
    except (pa.ArrowInvalid, OSError) as error:
        if not is_damage(error, file):
            raise
        raise DataError(f"{file}: damaged ({_one_line(error)}): delete it and run again") from None
    note = (footer.metadata or {}).get(FOOTER_KEY)
    if note is None:
        raise UsageError(
            f"{file}: not an output of this stage (no unit record in its footer): delete it and run again"
        )
    record = UnitRecord.from_json(note.decode())
    return UnitRecord(**{**asdict(record), "bytes_out": file.size_bytes() if size_bytes is None else size_bytes})


def read_output(directory: Location, unit: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a unit's output of a stage that is done.

    Args:
        directory: The stage's.
        unit: The unit.
        columns: Those to read, or None for all.

    Raises:
        FileNotFoundError: There is no such output.
        DataError: It is damaged.
    """
    location = unit_output(directory, unit)
    try:
        return location.read_table(None if columns is None else list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        if not is_damage(error, location):
            raise
        manifest = read_manifest(directory)
        raise DataError(
            f"{location}: damaged ({_one_line(error)}); delete it and {directory / MANIFEST}, and run "
            f"`mode-ray {manifest.stage if manifest else 'run'}` again: only what is missing is made"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
