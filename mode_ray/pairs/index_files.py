"""An index of pairs as files, which every worker maps into memory.

A small index is one file. The index of many work units has parts, which Ray tasks write on the cluster.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex, has_stored_rows, stored_rows
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

UNITS_PER_PART = 1024
_METADATA_KEY = b"mode_ray.training_set"
_ROWS_PER_BATCH = 65_536
_COPY_IS_DEAD_SECONDS = 60.0
_POLL_SECONDS = 0.5

Provenance = Mapping[str, str]
TablesOf = Callable[[range], Iterable[pa.Table]]
"""The rows of a part of an index, by a range of units."""
RunParts = Callable[[Callable[[range], Any], Sequence[range]], list[Any]]
"""Calls a function with each part, here or on the cluster; returns the results in order."""


def in_this_process(function: Callable[[range], Any], parts: Sequence[range]) -> list[Any]:
    """Call a function with each part in turn."""
    return [function(part) for part in parts]


def write_index_parts(
    file: Location, tables_of: TablesOf, parts: Sequence[range], made_of: Provenance, run_parts: RunParts
) -> int:
    """Write an index: one file if there is one part, else a file for each part and a list of them, which is last.

    The parts are in a folder whose name depends on the provenance. So parts of another provenance are never mixed in.

    Returns:
        The number of rows.
    """
    listed, earlier = _list_of_parts(file), _read_list(file)
    writer = _PartWriter(file if len(parts) == 1 else None, _parts_folder(file, made_of), tables_of, made_of)
    rows: list[int] = run_parts(writer, parts)
    if len(parts) == 1:
        listed.delete()
    elif sum(rows):
        names = [_part_name(part) for part, count in zip(parts, rows, strict=True) if count]
        folder = _parts_folder(file, made_of)
        listed.write_text(json.dumps({"made_of": dict(made_of), "folder": folder.name, "parts": names}))
        file.delete()
    if earlier is not None and earlier["made_of"] != made_of:
        (file.parent / earlier["folder"]).delete()
    return sum(rows)


@dataclass(frozen=True, eq=False)
class _PartWriter:
    """Writes one part of an index, and returns the number of its rows."""

    file: Location | None
    folder: Location
    tables_of: TablesOf
    made_of: Provenance

    def __call__(self, places: range) -> int:
        file = self.folder / _part_name(places) if self.file is None else self.file
        return write_index(file, self.tables_of(places), self.made_of)


def _part_name(places: range) -> str:
    return f"{places.start:08d}.arrow"


def _parts_folder(file: Location, made_of: Provenance) -> Location:
    digest = digest_of(json.dumps(dict(made_of), sort_keys=True).encode())
    return file.parent / f"{file.name.removesuffix('.arrow')}.parts-{digest}"


def _list_of_parts(file: Location) -> Location:
    return file.parent / f"{file.name.removesuffix('.arrow')}.parts.json"


def _read_list(file: Location) -> dict[str, Any] | None:
    listed = _list_of_parts(file)
    if not listed.exists():
        return None
    content: dict[str, Any] = json.loads(listed.read_text())
    return content


def write_index(file: Location, tables: Iterable[pa.Table], made_of: Provenance) -> int:
    """Write the rows of an index, atomically, as an uncompressed Arrow file; nothing is written if there are none.

    Returns:
        The number of rows.
    """
    batches = map(stored_rows, _rebatched(tables))
    first = next(batches, None)
    if first is None:
        return 0
    rows: int = first.num_rows
    metadata = {_METADATA_KEY: json.dumps(dict(made_of)).encode(), **first.schema.metadata}
    schema = first.schema.with_metadata(metadata)
    with file.open_atomic() as stream, pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _rebatched(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Rows in batches of equal size, so that finding a row is fast even with many small work units."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        if rows >= _ROWS_PER_BATCH:
            merged = pa.concat_tables(waiting).combine_chunks()
            whole = rows - rows % _ROWS_PER_BATCH
            yield from merged.slice(0, whole).to_batches(_ROWS_PER_BATCH)
            waiting, rows = [merged.slice(whole)], rows - whole
    if rows:
        yield from pa.concat_tables(waiting).combine_chunks().to_batches()


def index_provenance(file: Location) -> Provenance | None:
    """The provenance of an index; None if the file does not exist, is incomplete, or was written by version 0.1.0."""
    listed = _read_list(file)
    if listed is not None:
        of_parts: Provenance = listed["made_of"]
        return of_parts
    if not file.exists():
        return None
    try:
        metadata = file.complete(lambda: _schema_metadata(file))
    except pa.ArrowInvalid:
        return None
    made_of: Provenance | None = json.loads(metadata.get(_METADATA_KEY, b"{}")) if has_stored_rows(metadata) else None
    return made_of


def _schema_metadata(file: Location) -> dict[bytes, bytes]:
    with file.open_input() as source:
        return pa.ipc.open_file(source).schema.metadata or {}


def open_index(file: Location, work_units: Sequence[WorkUnit], made_of: Provenance) -> PairIndex:
    """Map an index. A remote index is copied to the local disk first, once per node.

    Raises:
        DataError: It is missing, or has another provenance.
    """
    found = index_provenance(file)
    if found != made_of:
        differing = sorted(name for name in {*(found or {}), *made_of} if (found or {}).get(name) != made_of.get(name))
        changed = "missing" if found is None else f"made of other {', '.join(differing)}"
        raise DataError(f"{file}: {changed}; run `mode-ray train` again to write it")
    listed = _read_list(file)
    files = [file] if listed is None else [file.parent / listed["folder"] / name for name in listed["parts"]]
    paths = [Path(file.path) for file in files] if file.is_local else _local_copies(files, made_of)
    return PairIndex.open(work_units, *paths)


def _local_copies(files: Sequence[Location], made_of: Provenance) -> list[Path]:
    """This node's copies of remote files.

    There are no locks. The first process copies a file to a temporary file. Others copy other files meanwhile, or wait
    while that file grows, and make their own copy if it stops growing because the process died. The final rename is
    atomic, and all copies are equal.
    """
    folder = Path(tempfile.gettempdir()) / f"mode-ray-{os.getuid()}" / "training_sets"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = json.dumps(dict(made_of), sort_keys=True)
    targets = {file: folder / f"{digest_of((file.uri + known).encode())}.arrow" for file in files}
    while left := [file for file, target in targets.items() if not target.exists()]:
        free = [file for file in left if not _is_growing(folder, targets[file].name)]
        if free:
            free[0].copy_to(Location(str(targets[free[0]])))
        else:
            time.sleep(_POLL_SECONDS)
    return list(targets.values())


def _is_growing(folder: Path, name: str) -> bool:
    """Whether another process is copying this file: its temporary file was modified recently."""
    now = time.time()
    for temporary in folder.glob(f".{name}.*.tmp"):
        try:
            if now - temporary.stat().st_mtime < _COPY_IS_DEAD_SECONDS:
                return True
        except FileNotFoundError:  # it was renamed: the copy is complete
            continue
    return False


def digest_of(content: bytes) -> str:
    """A short digest."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
