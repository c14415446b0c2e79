"""Copies a training set to its own WebDataset tars: of equal size, shuffled, with an index of their members.

A work unit is one tar. Its parquet output, written after the tar, has the offsets of its members and its record.
After a kill, finished tars are not written again. Other trainers can read the tars too.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex, index_columns, index_rows
from mode_ray.pairs.index_files import (
    UNITS_PER_PART,
    Provenance,
    RunParts,
    in_this_process,
    index_provenance,
    open_index,
    write_index_parts,
)
from mode_ray.pairs.order import SampleOrder
from mode_ray.pairs.reader import Pair, PairReader
from mode_ray.run_directory import STARTED
from mode_ray.stages.journal import finished_units
from mode_ray.stages.manifest import Stage, UnitRecord, read_output
from mode_ray.stages.work_unit import WorkUnit, read_work_units
from mode_ray.storage import Location

_INDEX_FILE = "index.arrow"
_PAIRS_PER_READ = 512
_SUFFIXES_BY_HEAD = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"\0\0\0\x0cjP  ": "jp2",
    b"\xffO\xffQ": "j2k",
    b"P4": "pbm",
    b"P5": "pgm",
    b"P6": "ppm",
}
_OTHER_SUFFIX = "jpg"  # images of unknown formats are copied unchanged


@dataclass(frozen=True)
class SourceIndex:
    """The arguments with which an actor opens a training set's index over the source shards."""

    file: Location
    work_units: Location
    made_of: Provenance

    def open(self) -> PairIndex:
        """Map the index."""
        return open_index(self.file, read_work_units(self.work_units), self.made_of)


class MaterialisedSet:
    """The tars of one training set in a folder.

    The folder has nothing else. Blocks of `block_pairs` neighbouring pairs stay together when the set is shuffled, so
    that one request reads them.
    """

    def __init__(self, folder: Location, source: SourceIndex, pairs_per_shard: int, block_pairs: int) -> None:
        self.folder = folder
        self.source = source
        self.block_pairs = block_pairs
        self._pairs_per_shard = pairs_per_shard
        self._made_of = {
            **source.made_of,
            "pairs_per_shard": str(pairs_per_shard),
            "block_pairs": str(block_pairs),
        }
        self.stage = Stage("materialise", folder, self._made_of)

    def is_done(self) -> bool:
        """Whether all tars and their index exist."""
        return index_provenance(self.folder / _INDEX_FILE) == self._made_of

    def begin(self, pairs: int, least_shards: int) -> int:
        """Claim the folder, and return the number of tars to write.

        A set that was begun keeps its number of tars, so that a run that resumes with other workers sees the same
        samples. A set of another provenance is deleted.
        """
        started = self.folder / STARTED
        if started.exists():
            note = json.loads(started.read_text())
            if note["fields"] == self._made_of:
                return int(note["units"])
            self.folder.delete()
        count = tar_count(pairs, self._pairs_per_shard, least_shards)
        self.stage.begin(count)
        return count

    def left(self, count: int) -> list[WorkUnit]:
        """The tars that are not written yet."""
        finished = finished_units(self.folder)
        return [work_unit for work_unit in tar_units(self.folder, count) if work_unit.unit not in finished]

    def finish(self, count: int, run_parts: RunParts = in_this_process) -> None:
        """Write the index over all tars."""
        self.stage.finish(finished_units(self.folder), {})
        parts = [range(start, min(start + UNITS_PER_PART, count)) for start in range(0, count, UNITS_PER_PART)]
        write_index_parts(self.folder / _INDEX_FILE, partial(_tar_rows, self.folder), parts, self._made_of, run_parts)

    def open(self) -> PairIndex:
        """Map the index over the tars.

        Raises:
            DataError: It is missing, or has another provenance.
        """
        started = self.folder / STARTED
        if not started.exists():
            raise DataError(f"{self.folder}: not materialised; run `mode-ray train` again to materialise it")
        count = int(json.loads(started.read_text())["units"])
        return open_index(self.folder / _INDEX_FILE, tar_units(self.folder, count), self._made_of)


def _tar_rows(folder: Location, tars: range) -> Iterator[pa.Table]:
    """Index rows of some tars."""
    schema = index_columns(tars=True)
    return (index_rows(read_output(folder, _tar_name(number)), number, schema) for number in tars)


class MaterialiseWorker:
    """Writes tars, one at a time; see `UnitWorker`."""

    def __init__(self, source: SourceIndex, captions: CaptionsConfig, block_pairs: int, count: int) -> None:
        self._index = source.open()
        self._reader = PairReader(self._index, captions)
        # The tars have the order of the first epoch of a run.
        self._order = SampleOrder(len(self._index), seed=0, block_pairs=block_pairs)
        self._count = count

    def read(self, work_unit: WorkUnit) -> list[Pair]:
        """Read a tar's pairs in its order, all of them into memory."""
        members = self._order.pairs_at(np.asarray(places_of(int(work_unit.unit), self._count, len(self._index))))
        by_source = np.argsort(members)
        pairs: dict[int, Pair] = {}
        for start in range(0, len(members), _PAIRS_PER_READ):
            places = by_source[start : start + _PAIRS_PER_READ]
            pairs.update(zip(places.tolist(), self._reader.read(members[places]), strict=True))
        return [pairs[place] for place in range(len(members))]

    def compute(self, work_unit: WorkUnit, source: Sequence[Pair]) -> tuple[pa.Table, UnitRecord]:
        """Write the tar, and return the table of its members' offsets."""
        first = places_of(int(work_unit.unit), self._count, len(self._index)).start
        table = write_pairs(work_unit.location, source, first)
        return table, UnitRecord(unit=work_unit.unit, source=work_unit.uri, rows_in=len(source), rows_out=len(source))


def tar_count(pairs: int, pairs_per_shard: int, least: int) -> int:
    """Number of tars: at least `least`, none empty, none with more than `pairs_per_shard` pairs."""
    return min(pairs, max(least, -(-pairs // pairs_per_shard)))


def places_of(tar: int, count: int, pairs: int) -> range:
    """Places of the shuffled order that are in a tar; the sizes of tars differ by at most one."""
    return range(tar * pairs // count, (tar + 1) * pairs // count)


def tar_units(folder: Location, count: int) -> list[WorkUnit]:
    """The tars of a materialised set."""
    names = [_tar_name(number) for number in range(count)]
    return [WorkUnit(unit=name, uri=(folder / f"{name}.tar").uri, format="webdataset") for name in names]


def _tar_name(number: int) -> str:
    return f"{number:05d}"


def write_pairs(location: Location, pairs: Sequence[Pair], first_key: int) -> pa.Table:
    """Write a tar of pairs, atomically: `KEY.jpg` (or another suffix, by content), `KEY.txt`; keys are consecutive.

    Returns:
        Positions of the members: `row`, `caption_index`, `image_offset`, `image_bytes`, `caption_offset`,
        `caption_bytes`.
    """
    places: dict[str, list[int]] = {"image_offset": [], "image_bytes": [], "caption_offset": [], "caption_bytes": []}
    with (
        location.open_atomic() as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for key, pair in enumerate(pairs, first_key):
            image, caption = pair.image, pair.caption.encode()
            for kind, suffix, content in (("image", image_suffix(image), image), ("caption", "txt", caption)):
                # TarInfo's defaults (time 0, user 0, no names) make the bytes reproducible.
                member = tarfile.TarInfo(f"{key:012d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                padding = -len(content) % tarfile.BLOCKSIZE
                places[f"{kind}_offset"].append(archive.offset - padding - len(content))
                places[f"{kind}_bytes"].append(len(content))
    rows = np.arange(len(pairs), dtype=np.int64)
    columns = {name: pa.array(values, pa.int64()) for name, values in places.items()}
    return pa.table({"row": rows, "caption_index": pa.array(rows * 0, pa.int32()), **columns})


def image_suffix(image: bytes) -> str:
    """The file name suffix of an image, by its content."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    if image[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((suffix for head, suffix in _SUFFIXES_BY_HEAD.items() if image.startswith(head)), _OTHER_SUFFIX)


def captions_of_tars(captions: CaptionsConfig) -> CaptionsConfig:
    """Names of captions and images in materialised tars."""
    return captions.model_copy(update={"caption_field": None})
