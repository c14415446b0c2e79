"""A training set's index as one file in the run directory: written once, mapped into the memory of every worker."""

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
    """All that decides the content of a training set's index, in few words.

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
    """Write the index of a training set, unless it stands already.

    Memory is flat: assignment shards are streamed, and a remote file is collected on the local disk.

    Args:
        members: The set.
        assignments: Directory of the assignment shards.
        work_units: All source shards.
        group_m: Coarse map for n experts; unused for `all`.
        folder: Where training sets belong.

    Returns:
        The file.

    Raises:
        DataError: The set is empty, or there is no assignment.
    """
    file = training_set_file(folder, members.name)
    made_of = provenance(members, assignments, work_units, group_m)
    if index_provenance(file) != made_of:
        write_index(file, stream_members(members, assignments, work_units, group_m), made_of)
    return file


def open_training_set(
    members: TrainingSet, assignments: Location, work_units: Sequence[WorkUnit], group_m: np.ndarray, folder: Location
) -> PairIndex:
    """Map what `write_training_set` wrote with the same arguments.

    Raises:
        DataError: It is missing, or was made of other assignments or shards.
    """
    made_of = provenance(members, assignments, work_units, group_m)
    return open_index(training_set_file(folder, members.name), work_units, made_of)


def write_index(file: Location, tables: Iterable[pa.Table], made_of: Provenance) -> None:
    """Write the rows of an index, atomically, as an uncompressed Arrow file.

    Raises:
        DataError: There are none.
    """
    batches = _rebatched(tables)
    first = next(batches, None)
    if first is None:
        raise DataError(f"{file.name}: the training set is empty; bring more captions")
    schema = first.schema.with_metadata({_METADATA_KEY: json.dumps(made_of).encode()})
    with file.open_atomic() as stream, pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def _rebatched(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Rows in batches of one size, so that finding a row does not take longer where shards are many and small."""
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
    """What an index was made of; None where there is no such file, or only the beginning of one."""
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
    """Map an index; a remote one is copied to the local disk first, once a node.

    Args:
        file: The index.
        work_units: Its source shards.
        made_of: What it must have been made of.

    Raises:
        DataError: It is missing, or was made of something else.
    """
    found = index_provenance(file)
    if found != made_of:
        changed = "missing" if found is None else f"made of other {', '.join(_differing(found, made_of))}"
        raise DataError(f"{file}: {changed}; run `mode-ray train` again, which writes it")
    local = Path(file.path) if file.is_local else _local_copy(file, made_of)
    return PairIndex.open(work_units, local)


def _differing(found: Provenance, expected: Provenance) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def _local_copy(file: Location, made_of: Provenance) -> Path:
    """This node's copy of a remote index.

    Without locks: who comes first copies, under a name of its own; others wait while its copy grows, and copy
    themselves where it has stopped (the process is dead). The rename at the end is atomic, and all copies are equal.
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
    """Whether another process is copying this file: its temporary was written to a moment ago."""
    now = time.time()
    for temporary in folder.glob(f".{name}.*.tmp"):
        try:
            if now - temporary.stat().st_mtime < _COPY_IS_DEAD_SECONDS:
                return True
        except FileNotFoundError:  # it was renamed: the copy stands
            continue
    return False


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
