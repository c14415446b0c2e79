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
        return Pair(image, _normalise(content), place)

    def _read_member(self, file: pa.NativeFile, kind: str, position: int, place: str) -> bytes:
        offset = int(self._columns[f"{kind}_offset"][position])
        size = int(self._columns[f"{kind}_bytes"][position])
        content = bytes(file.read_at(size, offset))
        if len(content) != size:
            raise DataError(f"{place}: the file ends inside its {kind}; it changed since it was assigned")
        return content

    def _read_parquet(self, number: int, shard: Shard, position: int) -> Pair:
        row = int(self._columns["row"][position])
        place = f"{shard.uri}: row {row}"
        _, ends = self._parquet(number)
        group = int(np.searchsorted(ends, row, side="right"))
        images, captions = self._row_group(number, group)
        within = row - (int(ends[group - 1]) if group else 0)
        image, caption = images[within].as_py(), captions[within].as_py()
        if isinstance(image, dict):  # the layout of Hugging Face data sets
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise DataError(f"{place}: column {self._captions.image_field!r} holds no image bytes")
        if isinstance(caption, list):
            caption = caption[int(self._columns["caption_index"][position])]
        return Pair(image, _normalise(caption if isinstance(caption, bytes) else str(caption).encode()), place)

    def _open_tar(self, number: int) -> pa.NativeFile:
        return self._index.shards[number].location.open_input()

    def _open_parquet(self, number: int) -> tuple[pq.ParquetFile, np.ndarray]:
        """The file and the row number at which each of its row groups ends."""
        file = open_parquet(self._index.shards[number])
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return file, np.cumsum(rows)

    def _read_row_group(self, number: int, group: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """The images and the captions of a row group."""
        file, _ = self._parquet(number)
        field = self._captions.caption_field or DEFAULT_CAPTION_FIELD
        if self._captions.image_field not in file.schema_arrow.names:
            raise DataError(
                f"{self._index.shards[number].uri}: no column {self._captions.image_field!r}; set "
                f"captions.image_field to one of {file.schema_arrow.names}"
            )
        table = file.read_row_group(group, [self._captions.image_field, field])
        return table[self._captions.image_field], table[field]


def _normalise(caption: bytes) -> str:
    return " ".join(caption.decode().split())
