"""A training set's index in the run directory: what it is made of, writing and opening it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.index_files import (
    UNITS_PER_PART,
    RunParts,
    digest_of,
    in_this_process,
    index_provenance,
    open_index,
    write_index_parts,
)
from mode_ray.pairs.members import (
    SetSource,
    TrainingSet,
    count_members,
    empty_set,
    is_sampled,
    sample_sizes,
    stream_members,
)
from mode_ray.run_directory import training_set_file
from mode_ray.stages.manifest import read_manifest
from mode_ray.stages.work_unit import WorkUnit, read_work_units, write_work_units
from mode_ray.storage import Location

_LISTING_KEY = b"mode_ray.listing_digest"


@dataclass(frozen=True, eq=False)
class SetFiles:
    """The files that a training set is made of; cheap to send to another process.

    Attributes:
        members: The set.
        assignments: Directory of the assign stage.
        work_units: File of the run's work units, as `write_set_units` writes it.
        group_m: Coarse map int32 [m]; empty for `all`, which needs none.
        units_per_part: Work units of a part of the index.
    """

    members: TrainingSet
    assignments: Location
    work_units: Location
    group_m: np.ndarray
    units_per_part: int = UNITS_PER_PART

    def provenance(self) -> dict[str, str]:
        """Everything that determines the content of the set's index, as short strings.

        Raises:
            DataError: The assign stage is not done.
        """
        manifest = read_manifest(self.assignments)
        if manifest is None:
            raise DataError(f"{self.assignments}: no manifest; run `mode-ray assign` first")
        coarse = np.ascontiguousarray(self.group_m, np.int32).tobytes()
        return {
            "members": repr(self.members.drawn),
            "assignments": manifest.content_hash,
            "coarse_map": "" if self.members.kind == "all" else digest_of(coarse),
            "shards": self._listing_digest(),
        }

    def _listing_digest(self) -> str:
        noted = (self.work_units.read_parquet_footer().metadata or {}).get(_LISTING_KEY)
        return listing_digest(read_work_units(self.work_units)) if noted is None else noted.decode()

    def tables(self, places: range, sampled: Mapping[str, int]) -> Iterable[pa.Table]:
        """Index rows of the set in the work units at some positions."""
        return stream_members(self._source(), None if self.members.needs_all_units else places, sampled)

    def count(self, places: range) -> dict[str, tuple[int, int]]:
        """Pairs of the expert, and others, in each of the work units at some positions."""
        return count_members(self._source(), places)

    def parts(self) -> list[range]:
        """The positions of the work units of each part of the index."""
        units = self.work_units.read_parquet_footer().num_rows
        size = units if self.members.needs_all_units else self.units_per_part
        return [range(start, min(start + size, units)) for start in range(0, units, size)]

    def _source(self) -> SetSource:
        return SetSource(self.members, self.assignments, read_work_units(self.work_units), self.group_m)


def write_set_units(location: Location, work_units: Sequence[WorkUnit]) -> None:
    """Write the work units of a run's training sets, with a digest of them that launchers read instead."""
    write_work_units(location, work_units, {_LISTING_KEY.decode(): listing_digest(work_units)})


def listing_digest(work_units: Iterable[WorkUnit]) -> str:
    """Digest of all work units."""
    digest = hashlib.blake2b(digest_size=8)
    for number, work_unit in enumerate(work_units):
        digest.update(f"{chr(10) if number else ''}{work_unit!r}".encode())
    return digest.hexdigest()


def write_training_set(files: SetFiles, folder: Location, run_parts: RunParts = in_this_process) -> Location:
    """Write the index of a training set, unless it exists; returns the file.

    Memory is constant, because assignments are streamed.

    Raises:
        DataError: The set is empty, or no work unit has assignments.
    """
    file, made_of, members = training_set_file(folder, files.members.name), files.provenance(), files.members
    if index_provenance(file) != made_of:
        parts, sampled = files.parts(), dict[str, int]()
        if is_sampled(members):
            counts: dict[str, tuple[int, int]] = {}
            for part in run_parts(files.count, parts):
                counts |= part
            sampled = sample_sizes(members, counts)
        if not write_index_parts(file, partial(files.tables, sampled=sampled), parts, made_of, run_parts):
            raise DataError(empty_set(members))
    return file


def open_training_set(files: SetFiles, folder: Location) -> PairIndex:
    """Map the index that `write_training_set` wrote with the same arguments.

    Raises:
        DataError: It is missing, or was made of other assignments or work units.
    """
    file = training_set_file(folder, files.members.name)
    return open_index(file, read_work_units(files.work_units), files.provenance())
