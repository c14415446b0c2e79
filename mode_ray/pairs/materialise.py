"""A training set copied into WebDataset tars of its own: balanced, shuffled, with an index of where its members lie.

A work unit is one tar. Its parquet output, written after it, holds the offsets of its members and the unit's record,
so that what was finished before a kill is known; see `stage`. Other trainers can read the tars as they are.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex, index_columns, index_rows
from mode_ray.pairs.order import SampleOrder
from mode_ray.pairs.reader import Pair, PairReader
from mode_ray.pairs.training_set import Provenance, index_provenance, open_index, write_index
from mode_ray.run_directory import STARTED
from mode_ray.stages.manifest import Stage, UnitRecord, read_output
from mode_ray.stages.work_unit import WorkUnit, read_work_units
from mode_ray.storage import Location

_INDEX_FILE = "index.arrow"
_PAIRS_PER_READ = 512
_SUFFIXES_BY_HEAD = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp"}
_OTHER_SUFFIX = "jpg"  # what cannot be decoded is copied as it is, and fails there as it does here


@dataclass(frozen=True)
class SourceIndex:
    """A training set's index over the source shards, as an actor opens it.

    Attributes:
        file: The index.
        work_units: The table of the source shards.
        made_of: What the index was made of.
    """

    file: Location
    work_units: Location
    made_of: Provenance

    def open(self) -> PairIndex:
        """Map the index."""
        return open_index(self.file, read_work_units(self.work_units), self.made_of)


class MaterialisedSet:
    """The tars of one training set in a folder of their own.

    Args:
        folder: Theirs alone.
        source: The set's index over the source shards.
        pairs_per_shard: Pairs of a tar, at most.
        block_pairs: Neighbours in the source that are dealt together, so that one request fetches them.
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
        """Whether all tars and their index stand."""
        return index_provenance(self.folder / _INDEX_FILE) == self._made_of

    def begin(self, pairs: int, least_shards: int) -> int:
        """Claim the folder, and say how many tars there are to be.

        What was begun keeps its number of tars, so that a run which goes on with other workers sees the same samples;
        what was made of other assignments is removed.

        Args:
            pairs: Size of the training set.
            least_shards: Tars, at least, where there are as many pairs.
        """
        started = self.folder / STARTED
        if started.exists():
            note = json.loads(started.read_text())
            if note["fields"] == self._made_of:
                return int(note["units"])
            self.folder.delete()
        count = shard_count(pairs, self._pairs_per_shard, least_shards)
        self.stage.begin(count)
        return count

    def left(self, count: int) -> list[WorkUnit]:
        """The tars that do not stand yet."""
        finished = self.stage.finished_units()
        return [work_unit for work_unit in tar_shards(self.folder, count) if work_unit.unit not in finished]

    def finish(self, count: int) -> None:
        """Write the index over all tars.

        Raises:
            DataError: A tar could not be made; the message is its reason.
        """
        work_units = tar_shards(self.folder, count)
        schema = index_columns(tars=True)
        members = (read_output(self.folder, work_unit.unit) for work_unit in work_units)
        rows = (index_rows(table, number, schema) for number, table in enumerate(members))
        self.stage.finish(self.stage.finished_units(), {})
        write_index(self.folder / _INDEX_FILE, rows, self._made_of)

    def open(self) -> PairIndex:
        """Map the index over the tars.

        Raises:
            DataError: It is missing, or was made of something else.
        """
        started = self.folder / STARTED
        if not started.exists():
            raise DataError(f"{self.folder}: not materialised; run `mode-ray train` again, which does it")
        count = int(json.loads(started.read_text())["units"])
        return open_index(self.folder / _INDEX_FILE, tar_shards(self.folder, count), self._made_of)


class MaterialiseWorker:
    """Makes one tar after the other; see `UnitWorker`.

    Args:
        source: The training set over the source shards.
        captions: How captions and images are named there.
        block_pairs: Neighbours that are dealt together.
        count: Number of tars.
    """

    def __init__(self, source: SourceIndex, captions: CaptionsConfig, block_pairs: int, count: int) -> None:
        self._index = source.open()
        self._reader = PairReader(self._index, captions)
        # The deal is the first epoch of an order over the source.
        self._order = SampleOrder(len(self._index), seed=0, block_pairs=block_pairs)
        self._count = count

    def read(self, work_unit: WorkUnit) -> list[Pair]:
        """Fetch a tar's pairs, in its order; all of them are in memory."""
        members = self._order.pairs_at(np.asarray(places_of(int(work_unit.unit), self._count, len(self._index))))
        by_source = np.argsort(members)
        pairs: dict[int, Pair] = {}
        for start in range(0, len(members), _PAIRS_PER_READ):
            places = by_source[start : start + _PAIRS_PER_READ]
            pairs.update(zip(places.tolist(), self._reader.read(members[places]), strict=True))
        return [pairs[place] for place in range(len(members))]

    def compute(self, work_unit: WorkUnit, source: Sequence[Pair]) -> tuple[pa.Table, UnitRecord]:
        """Write the tar; its rows are the offsets of the members."""
        first = places_of(int(work_unit.unit), self._count, len(self._index)).start
        table = write_pairs(work_unit.location, source, first)
        return table, UnitRecord(unit=work_unit.unit, source=work_unit.uri, rows_in=len(source), rows_out=len(source))


def shard_count(pairs: int, pairs_per_shard: int, least: int) -> int:
    """Number of tars: enough that none holds more than `pairs_per_shard`, at least `least`, never an empty one."""
    return min(pairs, max(least, -(-pairs // pairs_per_shard)))


def places_of(work_unit: int, count: int, pairs: int) -> range:
    """Places of the deal that go into a tar; sizes differ by one at most."""
    return range(work_unit * pairs // count, (work_unit + 1) * pairs // count)


def tar_shards(folder: Location, count: int) -> list[WorkUnit]:
    """The tars of a materialised set."""
    names = [f"{number:05d}" for number in range(count)]
    return [WorkUnit(unit=name, uri=(folder / f"{name}.tar").uri, format="webdataset") for name in names]


def write_pairs(location: Location, pairs: Sequence[Pair], first_key: int) -> pa.Table:
    """Write a tar of pairs, atomically: `KEY.jpg` (by content), `KEY.txt`.

    Args:
        location: The tar.
        pairs: In the order in which they are to stand.
        first_key: Keys are numbers from here on.

    Returns:
        Where the members lie: `row`, `caption_index`, `image_offset`, `image_bytes`, `caption_offset`,
        `caption_bytes`.
    """
    places: dict[str, list[int]] = {"image_offset": [], "image_bytes": [], "caption_offset": [], "caption_bytes": []}
    with (
        location.open_atomic() as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for key, pair in enumerate(pairs, first_key):
            for kind, suffix, content in _members(pair):
                # TarInfo's defaults are what reproducible bytes need: time 0, user 0, no names.
                member = tarfile.TarInfo(f"{key:012d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                padding = -len(content) % tarfile.BLOCKSIZE
                places[f"{kind}_offset"].append(archive.offset - padding - len(content))
                places[f"{kind}_bytes"].append(len(content))
    rows = np.arange(len(pairs), dtype=np.int64)
    columns = {name: pa.array(values, pa.int64()) for name, values in places.items()}
    return pa.table({"row": rows, "caption_index": pa.array(rows * 0, pa.int32()), **columns})


def _members(pair: Pair) -> Iterator[tuple[str, str, bytes]]:
    yield "image", image_suffix(pair.image), pair.image
    yield "caption", "txt", pair.caption.encode()


def image_suffix(image: bytes) -> str:
    """The file name suffix of an image, by its content."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return next((suffix for head, suffix in _SUFFIXES_BY_HEAD.items() if image.startswith(head)), _OTHER_SUFFIX)


def captions_of_tars(captions: CaptionsConfig) -> CaptionsConfig:
    """How captions and images are named in materialised tars."""
    return captions.model_copy(update={"caption_field": None})
