"""Reads single pairs, image bytes and caption, from the source shards."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mode_ray.captions.clean import normalised
from mode_ray.captions.image_column import BadImageError, stored_image
from mode_ray.captions.parquet import DEFAULT_CAPTION_FIELD, open_parquet
from mode_ray.captions.webdataset import json_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.pairs.byte_ranges import merge_ranges
from mode_ray.pairs.index import SHARD, PairIndex
from mode_ray.pairs.s3_ranges import SCHEME, S3Ranges
from mode_ray.storage import is_damage

_OPEN_LOCAL_FILES = 64
_OPEN_REMOTE_FILES = 4096  # such as GCS: an open file has no connection, only the size that opening it requested
_CACHED_ROW_GROUPS = 16
_CONCURRENT_REQUESTS = 16
READ_SLACK = 0.2
"""Maximum bytes read in addition to the members, as a share of the members' bytes."""

_Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """One image-caption pair as it is stored in its shard.

    Attributes:
        image: The encoded image.
        caption: The caption, white space normalised.
        place: File and row, for messages.
        problem: Why the row has no image; `image` is then empty.
    """

    image: bytes
    caption: str
    place: str
    problem: str = ""

    def encoded(self) -> bytes:
        """The encoded image; raises `DataError` if the row has none."""
        if self.problem:
            raise DataError(self.problem)
        return self.image


def caption_id(caption: str) -> int:
    """A hash of a caption, 64 bits signed; equal for different captions with probability 2^-64 only."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), signed=True)


@dataclass
class ReadCounters:
    """The reads of a reader so far.

    Attributes:
        requests: Number of ranges of tars and row groups of parquet files that were read.
        bytes_read: Their bytes, as stored in the files.
        member_bytes: Bytes of the requested images and captions; a pair that is twice in a batch counts once.
    """

    requests: int = 0
    bytes_read: int = 0
    member_bytes: int = 0


class PairReader:
    """Random access to the pairs of an index. Files and parquet row groups stay open between calls."""

    def __init__(self, index: PairIndex, captions: CaptionsConfig) -> None:
        self.counters = ReadCounters()
        self._index = index
        self._captions = captions
        self._local_tar = lru_cache(_OPEN_LOCAL_FILES)(self._open_tar)
        self._remote_tar = lru_cache(_OPEN_REMOTE_FILES)(self._open_tar)
        self._parquet = lru_cache(_OPEN_LOCAL_FILES)(self._open_parquet)
        self._row_group = lru_cache(_CACHED_ROW_GROUPS)(self._read_row_group)

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes open their own files.
        return {"_index": self._index, "_captions": self._captions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_index"], state["_captions"])  # type: ignore[misc]

    def read(self, positions: Sequence[int] | np.ndarray) -> list[Pair]:
        """Read pairs, in the order of `positions`.

        Members of one tar that are close together are read in one request, which reads at most 1.2 times their bytes.
        Requests to remote files are sent concurrently.

        Raises:
            DataError: A pair is not at the position in the index; names file and row.
        """
        columns = self._index.columns_at(positions)
        numbers = columns[SHARD]
        work_units = {number: self._index.work_units[number] for number in np.unique(numbers).tolist()}
        tars = [number for number, work_unit in work_units.items() if work_unit.format == "webdataset"]
        in_tar = np.isin(numbers, tars)
        pairs: dict[int, Pair] = {}
        self._read_tars(columns, np.flatnonzero(in_tar), pairs)
        rows = np.flatnonzero(~in_tar)
        # In the order of rows: neighbours share a row group, and the file is read forward.
        for place in rows[np.lexsort((columns["row"][rows], numbers[rows]))].tolist():
            pairs[place] = self._read_parquet(columns, place)
        return [pairs[place] for place in range(len(numbers))]

    def _read_tars(self, columns: _Columns, places: np.ndarray, pairs: dict[int, Pair]) -> None:
        """Read the pairs at these places of the columns, all of them in tars, into `pairs`."""
        if len(places) == 0:
            return
        count = len(places)
        numbers = np.tile(columns[SHARD][places].astype(np.int64), 2)
        starts = np.concatenate([columns["image_offset"][places], columns["caption_offset"][places]]).astype(np.int64)
        sizes = np.concatenate([columns["image_bytes"][places], columns["caption_bytes"][places]]).astype(np.int64)
        merged = merge_ranges(numbers, starts, sizes, READ_SLACK)
        requests = list(zip(merged.files_q.tolist(), merged.starts_q.tolist(), merged.ends_q.tolist(), strict=True))
        local = {number: self._index.work_units[number].location.is_local for number in set(merged.files_q.tolist())}
        sent = [
            None if local[number] else self._readers.submit(self._read_range, number, start, end)
            for number, start, end in requests
        ]
        self.counters.requests += len(requests)
        self.counters.bytes_read += merged.request_bytes
        self.counters.member_bytes += merged.range_bytes
        contents = [
            future.result() if future else self._read_range(*request)
            for future, request in zip(sent, requests, strict=True)
        ]
        begins = (starts - merged.starts_q[merged.request_r]).tolist()
        covering, lengths = merged.request_r.tolist(), sizes.tolist()
        for at, place in enumerate(places.tolist()):
            number = int(columns[SHARD][place])
            where = f"{self._index.work_units[number].uri}: sample {columns['row'][place]}"
            members = []
            for kind, member in (("image", at), ("caption", count + at)):
                content = contents[covering[member]][begins[member] : begins[member] + lengths[member]]
                if len(content) != lengths[member]:
                    raise DataError(f"{where}: the file ends inside its {kind}; it changed since it was assigned")
                members.append(content)
            pairs[place] = Pair(members[0], self._tar_caption(members[1], columns, place, where), where)

    def _read_range(self, number: int, start: int, end: int) -> bytes:
        """Bytes of a tar; fewer if the tar ends earlier."""
        location = self._index.work_units[number].location
        if location.uri.startswith(SCHEME):
            return location.complete(lambda: self._s3.read(location, start, end))
        file = self._local_tar(number) if location.is_local else self._remote_tar(number)
        size = max(0, min(end, file.size()) - start)
        return bytes(location.complete(lambda: file.read_at(size, start))) if size else b""

    def _tar_caption(self, content: bytes, columns: _Columns, place: int, where: str) -> str:
        field = self._captions.caption_field
        if field is not None:
            try:
                content = json_captions(content, field)[int(columns["caption_index"][place])] or b""
            except (ValueError, IndexError):
                raise DataError(f"{where}: its .json member changed since it was assigned") from None
        return _normalise(content, where)

    def _read_parquet(self, columns: _Columns, position: int) -> Pair:
        number, row = int(columns[SHARD][position]), int(columns["row"][position])
        place = f"{self._index.work_units[number].uri}: row {row}"
        _, ends = self._parquet(number)
        if len(ends) == 0 or row >= ends[-1]:
            raise DataError(f"{place}: the file has fewer rows; it changed since it was assigned")
        group = int(np.searchsorted(ends, row, side="right"))
        images, captions = self._row_group(number, group)
        within = row - (int(ends[group - 1]) if group else 0)
        value, caption = images[within].as_py(), captions[within].as_py()
        image, problem = b"", ""
        try:
            image = stored_image(value, self._captions.image_field, self._captions.image_root, place)
        except BadImageError as error:
            problem = str(error)  # training counts it as a bad image
        if isinstance(caption, list):
            caption = dict(enumerate(caption)).get(int(columns["caption_index"][position]))
        if not isinstance(caption, str | bytes):
            raise DataError(f"{place}: the caption is missing; the file changed since it was assigned")
        text = caption.encode() if isinstance(caption, str) else caption
        self.counters.member_bytes += len(image) + len(text)
        return Pair(image, _normalise(text, place), place, problem)

    @cached_property
    def _s3(self) -> S3Ranges:
        return S3Ranges(_CONCURRENT_REQUESTS)

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_CONCURRENT_REQUESTS, "read")

    def _open_tar(self, number: int) -> pa.NativeFile:
        work_unit = self._index.work_units[number]
        try:
            return work_unit.location.open_input()
        except FileNotFoundError:
            raise DataError(f"{work_unit.uri}: no such file; it was removed since it was assigned") from None

    def _open_parquet(self, number: int) -> tuple[pq.ParquetFile, np.ndarray]:
        """The file, and the row number after each of its row groups."""
        file = open_parquet(self._index.work_units[number])
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return file, np.cumsum(rows)

    def _read_row_group(self, number: int, group: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """The images and the captions of a row group."""
        file, _ = self._parquet(number)
        field = self._captions.caption_field or DEFAULT_CAPTION_FIELD
        work_unit = self._index.work_units[number]
        names = {"image_field": self._captions.image_field, "caption_field": field}
        for setting, name in names.items():
            if name not in file.schema_arrow.names:
                raise DataError(
                    f"{work_unit.uri}: no column {name!r}; set captions.{setting} to one of {file.schema_arrow.names}"
                )
        try:
            table = work_unit.location.complete(lambda: file.read_row_group(group, list(names.values())))
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            if not is_damage(error, work_unit.location):
                raise
            raise DataError(
                f"{work_unit.uri}: damaged parquet data in row group {group}; replace it ({error})"
            ) from None
        self.counters.requests += 1
        self.counters.bytes_read += _stored_bytes(file.metadata.row_group(group), frozenset(names.values()))
        return table[self._captions.image_field], table[field]


def _stored_bytes(group: pq.RowGroupMetaData, names: frozenset[str]) -> int:
    """Compressed bytes of some columns of a row group, including all leaves of nested columns."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] in names)


def _normalise(caption: bytes, place: str) -> str:
    try:
        return normalised(caption.decode())
    except UnicodeDecodeError:
        raise DataError(f"{place}: its caption is not UTF-8; the file changed since it was assigned") from None
