"""A training set's index as a file in the run directory. It is written once, and every worker maps it into memory."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.members import TrainingSet, stream_members
from mode_ray.run_directory import training_set_file
from mode_ray.stages.manifest import read_manifest
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

_METADATA_KEY = b"mode_ray.training_set"
_ROWS_PER_BATCH = 65_536
_COPY_IS_DEAD_SECONDS = 60.0
_POLL_SECONDS = 0.5

Provenance = Mapping[str, str]


def provenance(
    members: TrainingSet, assignments: Location, work_units: Sequence[WorkUnit], group_m: np.ndarray
) -> dict[str, str]:
    """Everything that determines the content of a training set's index, as short strings.

    Raises:
        DataError: The assign stage is not done.
    """
    manifest = read_manifest(assignments)
    if manifest is None:
        raise DataError(f"{assignments}: no manifest; run `mode-ray assign` first")
    coarse = "" if members.kind == "all" else _digest(np.ascontiguousarray(group_m, np.int32).tobytes())
    listing = "\n".join(map(repr, work_units))
    return {
        "members": repr(members.drawn),
        "assignments": manifest.content_hash,
        "coarse_map": coarse,
        "shards": _digest(listing.encode()),
    }


def write_training_set(
    members: TrainingSet, assignments: Location, work_units: Sequence[WorkUnit], group_m: np.ndarray, folder: Location
) -> Location:
    """Write the index of a training set, unless it exists; returns the file.

    Memory is constant: assignments are streamed, and a remote file is collected on the local disk.

    Raises:
        DataError: The set is empty, or no work unit has assignments.
    """
    file = training_set_file(folder, members.name)
    made_of = provenance(members, assignments, work_units, group_m)
    if index_provenance(file) != made_of:
        write_index(file, stream_members(members, assignments, work_units, group_m), made_of)
    return file


def open_training_set(
    members: TrainingSet, assignments: Location, work_units: Sequence[WorkUnit], group_m: np.ndarray, folder: Location
) -> PairIndex:
    """Map the index that `write_training_set` wrote with the same arguments.

    Raises:
        DataError: It is missing, or was made of other assignments or work units.
    """
    made_of = provenance(members, assignments, work_units, group_m)
    return open_index(training_set_file(folder, members.name), work_units, made_of)


def write_index(file: Location, tables: Iterable[pa.Table], made_of: Provenance) -> None:
    """Write the rows of an index, atomically, as an uncompressed Arrow file.

    Raises:
        DataError: There are no rows.
    """
    batches = _rebatched(tables)
    first = next(batches, None)
    if first is None:
        raise DataError(f"{file.name}: the training set is empty; add more captions")
    schema = first.schema.with_metadata({_METADATA_KEY: json.dumps(made_of).encode()})
    with file.open_atomic() as stream, pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


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
    """The provenance of an index; None if the file does not exist or is incomplete."""
    if not file.exists():
        return None
    try:
        metadata = file.complete(lambda: _schema_metadata(file))
    except pa.ArrowInvalid:
        return None
    made_of: Provenance = json.loads(metadata.get(_METADATA_KEY, b"{}"))
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
    local = Path(file.path) if file.is_local else _local_copy(file, made_of)
    return PairIndex.open(work_units, local)


def _local_copy(file: Location, made_of: Provenance) -> Path:
    """This node's copy of a remote index.

    There are no locks. The first process copies the index to a temporary file. Others wait while that file grows, and
    make their own copy if it stops growing because the process died. The final rename is atomic, and all copies are
    equal.
    """
    folder = Path(tempfile.gettempdir()) / f"mode-ray-{os.getuid()}" / "training_sets"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / f"{_digest((file.uri + json.dumps(made_of, sort_keys=True)).encode())}.arrow"
    while not target.exists():
        if not _is_growing(folder, target.name):
            file.copy_to(Location(str(target)))
        else:
            time.sleep(_POLL_SECONDS)
    return target


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


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
