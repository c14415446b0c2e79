"""Fetch single pairs, image bytes and caption, from the source shards."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mode_ray.captions.parquet import DEFAULT_CAPTION_FIELD, open_parquet
from mode_ray.captions.shards import Shard
from mode_ray.captions.webdataset import json_captions
from mode_ray.config import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.expert_data import SHARD, PairIndex
from mode_ray.storage import is_damage

_OPEN_FILES = 64
_CACHED_ROW_GROUPS = 16


@dataclass(frozen=True)
class Pair:
    """One image-caption pair as it lies in its shard.

    Attributes:
        image: The encoded image.
        caption: The caption, white space normalised.
        place: File and row, for messages.
    """

    image: bytes
    caption: str
    place: str


class PairReader:
    """Random access to the pairs of an index; keeps files and parquet row groups open between calls.

    Args:
        index: The pairs.
        captions: How captions and images are named in the shards.
    """

    def __init__(self, index: PairIndex, captions: CaptionsConfig) -> None:
        self._index = index
        self._captions = captions
        self._columns = {name: index.table[name].to_numpy() for name in index.table.column_names}
        self._tar = lru_cache(_OPEN_FILES)(self._open_tar)
        self._parquet = lru_cache(_OPEN_FILES)(self._open_parquet)
        self._row_group = lru_cache(_CACHED_ROW_GROUPS)(self._read_row_group)

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes open files of their own.
        return {"_index": self._index, "_captions": self._captions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_index"], state["_captions"])  # type: ignore[misc]

    def read(self, positions: Sequence[int]) -> list[Pair]:
        """Read pairs, in the order of `positions`.

        Raises:
            DataError: A pair is not where the index says; names file and row.
        """
        by_shard = defaultdict(list)
        for place, position in enumerate(positions):
            by_shard[int(self._columns[SHARD][position])].append((place, position))
        pairs: dict[int, Pair] = {}
        for number, wanted in by_shard.items():
            shard = self._index.shards[number]
            # Ascending rows: neighbours share a row group, and reads go forward through the file.
            for place, position in sorted(wanted, key=lambda item: int(self._columns["row"][item[1]])):
                read = self._read_tar if shard.format == "webdataset" else self._read_parquet
                pairs[place] = read(number, shard, position)
        return [pairs[place] for place in range(len(positions))]

    def _read_tar(self, number: int, shard: Shard, position: int) -> Pair:
        place = f"{shard.uri}: sample {self._columns['row'][position]}"
        file = self._tar(number)
        image = self._read_member(file, "image", position, place)
        content = self._read_member(file, "caption", position, place)
        field = self._captions.caption_field
        if field is not None:
            try:
                text = json_captions(content, field)[int(self._columns["caption_index"][position])] or b""
            except (ValueError, IndexError):
                raise DataError(f"{place}: its .json member changed since it was assigned") from None
            content = text
        return Pair(image, _normalise(content, place), place)

    def _read_member(self, file: pa.NativeFile, kind: str, position: int, place: str) -> bytes:
        offset = int(self._columns[f"{kind}_offset"][position])
        size = int(self._columns[f"{kind}_bytes"][position])
        # Arrow's S3 files raise where others give fewer bytes.
        content = b"" if offset + size > file.size() else bytes(file.read_at(size, offset))
        if len(content) != size:
            raise DataError(f"{place}: the file ends inside its {kind}; it changed since it was assigned")
        return content

    def _read_parquet(self, number: int, shard: Shard, position: int) -> Pair:
        row = int(self._columns["row"][position])
        place = f"{shard.uri}: row {row}"
        _, ends = self._parquet(number)
        if len(ends) == 0 or row >= ends[-1]:
            raise DataError(f"{place}: the file has fewer rows; it changed since it was assigned")
        group = int(np.searchsorted(ends, row, side="right"))
        images, captions = self._row_group(number, group)
        within = row - (int(ends[group - 1]) if group else 0)
        image, caption = images[within].as_py(), captions[within].as_py()
        if image is None:
            image = b""  # a bad image, which training counts like any other
        if isinstance(image, dict):  # the layout of Hugging Face data sets
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise DataError(f"{place}: column {self._captions.image_field!r} holds no image bytes")
        if isinstance(caption, list):
            caption = dict(enumerate(caption)).get(int(self._columns["caption_index"][position]))
        if not isinstance(caption, str | bytes):
            raise DataError(f"{place}: its caption is gone; the file changed since it was assigned")
        return Pair(image, _normalise(caption.encode() if isinstance(caption, str) else caption, place), place)

    def _open_tar(self, number: int) -> pa.NativeFile:
        shard = self._index.shards[number]
        try:
            return shard.location.open_input()
        except FileNotFoundError:
            raise DataError(f"{shard.uri}: no such file; it was there when it was assigned") from None

    def _open_parquet(self, number: int) -> tuple[pq.ParquetFile, np.ndarray]:
        """The file and the row number at which each of its row groups ends."""
        file = open_parquet(self._index.shards[number])
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return file, np.cumsum(rows)

    def _read_row_group(self, number: int, group: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """The images and the captions of a row group."""
        file, _ = self._parquet(number)
        field = self._captions.caption_field or DEFAULT_CAPTION_FIELD
        shard = self._index.shards[number]
        names = {"image_field": self._captions.image_field, "caption_field": field}
        for setting, name in names.items():
            if name not in file.schema_arrow.names:
                raise DataError(
                    f"{shard.uri}: no column {name!r}; set captions.{setting} to one of {file.schema_arrow.names}"
                )
        try:
            table = file.read_row_group(group, list(names.values()))
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            if not is_damage(error, shard.location):
                raise
            raise DataError(f"{shard.uri}: damaged parquet data in row group {group}; replace it ({error})") from None
        return table[self._captions.image_field], table[field]


def _normalise(caption: bytes, place: str) -> str:
    try:
        return " ".join(caption.decode().split())
    except UnicodeDecodeError:
        raise DataError(f"{place}: its caption is not UTF-8; the file changed since it was assigned") from None
