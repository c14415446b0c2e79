"""The faiss parts of an index: exact inner-product indexes of bounded size, and the search over them.

The parts divide the rows of all work units, in the order of the units' names; a position counts the rows of all units.
A search reads part after part and merges the results: the result equals that of a single index. Parts stay in memory
up to a bound; of the other parts, one at a time is in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mode_ray.cluster.search.nearest import import_faiss
from mode_ray.errors import DataError, UsageError
from mode_ray.index.vectors import CAPTION, embedding_rows
from mode_ray.run_directory import part_name, unit_output
from mode_ray.stages.manifest import read_output, read_units
from mode_ray.storage import Location

Float32Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
KEPT_BYTES = 4 << 30


@dataclass(frozen=True)
class Hit:
    """An image found by a search.

    Attributes:
        score: The ensemble's score for the query.
        source: The image's file.
        row: Its row there.
        key: Its name.
        caption: The first caption of its pair; None without one, or if the index is of mode_ray 0.1.
    """

    score: float
    source: str
    row: int
    key: str
    caption: str | None = None


def build_parts(embeddings: Location, target: Location, rows_per_part: int) -> int:
    """Write the parts of a finished embedding stage. One part and one work unit are in memory at a time.

    Returns:
        The number of parts.

    Raises:
        DataError: A unit is damaged.
    """
    faiss = import_faiss()
    number = 0
    for rows_nd in _filled(_unit_rows(embeddings), rows_per_part):
        part = faiss.IndexFlatIP(rows_nd[0].shape[1])
        for some_bd in rows_nd:
            part.add(np.ascontiguousarray(some_bd))
        (target / part_name(number)).write_bytes(faiss.serialize_index(part).tobytes())
        number += 1
    return number


class ImageIndex:
    """A finished index.

    Args:
        embeddings: Directory of the embeddings.
        parts: Directory of the faiss parts.
        count: Number of parts.
        keep_bytes: Parts stay in memory between searches up to this size; every search reads the other parts again.
    """

    def __init__(self, embeddings: Location, parts: Location, count: int, keep_bytes: int = KEPT_BYTES) -> None:
        self._embeddings = embeddings
        self._parts = [parts / part_name(number) for number in range(count)]
        self._kept: dict[int, Any] = {}
        self._room_bytes = keep_bytes
        self._units = [record for record in read_units(embeddings) if record.error is None]
        self._ends = np.cumsum([record.rows_out for record in self._units], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def search(self, queries_ld: npt.NDArray[np.floating], count: int) -> tuple[Float32Array, Integers]:
        """The images with the highest scores for every query, best first; exact.

        Args:
            queries_ld: The query side, weights included; see `mode_ray.index.query`.
            count: How many.

        Returns:
            (score_lk, position_lk), k = the smaller of `count` and the number of images; positions are for `hits`.

        Raises:
            UsageError: The queries have another width than the index.
            DataError: A part is missing or damaged.
        """
        queries = np.ascontiguousarray(queries_ld, np.float32)
        k = min(count, len(self))
        scores, positions = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        before = 0
        for number, file in enumerate(self._parts):
            part = self._part(number)
            if part.d != queries.shape[1]:
                raise UsageError(
                    f"{file}: an index of {part.d} dimensions, but the queries have {queries.shape[1]}: it was made "
                    "with other experts; search with the run that made it"
                )
            found, places = part.search(queries, min(k, part.ntotal))
            scores = np.concatenate([scores, found], axis=1)
            positions = np.concatenate([positions, places + before], axis=1)
            best = np.lexsort((positions, -scores), axis=1)[:, :k]
            scores, positions = np.take_along_axis(scores, best, 1), np.take_along_axis(positions, best, 1)
            before += part.ntotal
        if before != len(self):
            raise DataError(
                f"{self._parts[0].parent if self._parts else self._embeddings}: the parts hold {before} images, the "
                f"embeddings {len(self)}: delete this directory and run `mode-ray index` again"
            )
        return scores, positions

    def _part(self, number: int) -> Any:  # noqa: ANN401 - faiss has no types
        if number in self._kept:
            return self._kept[number]
        part = _read_part(self._parts[number])
        size = part.ntotal * part.d * np.dtype(np.float32).itemsize
        if size <= self._room_bytes:
            self._room_bytes -= size
            self._kept[number] = part
        return part

    def hits(
        self, score_k: Sequence[float] | npt.NDArray[np.floating], position_k: Sequence[int] | Integers
    ) -> list[Hit]:
        """The files, rows and names of found images."""
        numbers = np.searchsorted(self._ends, np.asarray(position_k), side="right").tolist()
        tables = {number: self._names(self._units[number].unit) for number in set(numbers)}
        found = []
        for score, position, number in zip(score_k, position_k, numbers, strict=True):
            record, table = self._units[number], tables[number]
            place = int(position) - int(self._ends[number] - record.rows_out)
            found.append(Hit(float(score), record.source, **table.slice(place, 1).to_pylist()[0]))
        return found

    def _names(self, unit: str) -> pa.Table:
        """Row, key and caption of every image of a unit."""
        stored = unit_output(self._embeddings, unit).read_parquet_footer().schema.to_arrow_schema().names
        return read_output(self._embeddings, unit, [name for name in ("row", "key", CAPTION) if name in stored])


def _unit_rows(embeddings: Location) -> Iterator[Float32Array]:
    for record in read_units(embeddings):
        if record.error is None and record.rows_out:
            yield embedding_rows(read_output(embeddings, record.unit))


def _filled(blocks: Iterable[Float32Array], rows: int) -> Iterator[list[Float32Array]]:
    """Lists of blocks with `rows` rows in total; the last list has the remaining rows."""
    held: list[Float32Array] = []
    room = rows
    for block in blocks:
        left = block
        while len(left) >= room:
            yield [*held, left[:room]]
            left, held, room = left[room:], [], rows
        if len(left):
            held.append(left)
            room -= len(left)
    if held:
        yield held


def _read_part(file: Location) -> Any:  # noqa: ANN401 - faiss has no types
    try:
        data = np.frombuffer(file.read_bytes(), np.uint8)
        return import_faiss().deserialize_index(data)
    except FileNotFoundError:
        raise DataError(f"{file}: missing: delete its directory and run `mode-ray index` again") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: damaged ({reason}): delete its directory and run `mode-ray index` again") from None
