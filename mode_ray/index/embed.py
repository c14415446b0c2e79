"""Embeds images once with all experts: one file per work unit, with the experts' unit embeddings side by side.

The embeddings depend on no task: the query carries the weights (`mode_ray.index.query`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mode_ray.captions.read import read_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.config.evaluate import IndexPlacement
from mode_ray.errors import DataError
from mode_ray.index.images import EncodedImage, read_images
from mode_ray.index.vectors import index_table
from mode_ray.models.encode import Expert
from mode_ray.pairs.images import decode_image
from mode_ray.routing.mix import concatenated_images
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

NO_IMAGE = "no image"
BAD_IMAGE = "undecodable image"


class ImagesOfUnit(NamedTuple):
    """What a worker reads: the encoded images of a unit, and the first caption of each row that has one."""

    images: Sequence[EncodedImage]
    caption_by_row: Mapping[int, str]


class IndexWorker:
    """Embeds the images of one work unit; see `UnitWorker`.

    Args:
        captions: Names of the fields.
        models: The experts' folders, in order of their ids; None for an expert that is left out: its block is zeros.
        placement: Batch size and device.
        threads: CPU threads.
        max_pixels: Larger images are left out and counted.

    Raises:
        DataError: A model is missing or damaged; names the file.
    """

    def __init__(
        self,
        captions: CaptionsConfig,
        models: Sequence[Location | None],
        placement: IndexPlacement,
        threads: int,
        max_pixels: int,
    ) -> None:
        torch.set_num_threads(threads)
        self._captions = captions
        self._experts = [None if folder is None else Expert(folder, placement.device) for folder in models]
        self._first = next(expert for expert in self._experts if expert is not None)
        # Experts of one run share their architecture.
        self._width = self._first.encode_texts([""]).shape[1]
        self._batch_size = placement.batch_size
        self._max_pixels = max_pixels

    def read(self, work_unit: WorkUnit) -> ImagesOfUnit:
        """Read the encoded images of the work unit, and their captions if it has any."""
        images = list(read_images(work_unit, self._captions))
        try:
            table = read_captions(work_unit, self._captions).table
        except DataError:
            return ImagesOfUnit(images, {})  # `index.images` may name files without captions
        by_row: dict[int, str] = {}
        for row, caption in zip(table["row"].to_pylist(), table["caption"].to_pylist(), strict=True):
            by_row.setdefault(row, caption)
        return ImagesOfUnit(images, by_row)

    def compute(self, work_unit: WorkUnit, source: ImagesOfUnit) -> tuple[pa.Table, UnitRecord]:
        """Decode and embed them in batches."""
        rows: list[int] = []
        keys: list[str] = []
        parts: list[np.ndarray] = []
        batch: list[torch.Tensor] = []
        refused: dict[str, int] = {}
        examples: dict[str, str] = {}
        for image in source.images:
            prepared, reason, place = self._prepare(image, work_unit)
            if prepared is None:
                refused[reason] = refused.get(reason, 0) + 1
                examples.setdefault(reason, place)
                continue
            rows.append(image.row)
            keys.append(image.key)
            batch.append(prepared)
            if len(batch) == self._batch_size:
                parts.append(self._encode(batch))
                batch = []
        if batch:
            parts.append(self._encode(batch))
        record = UnitRecord(
            unit=work_unit.unit,
            source=work_unit.uri,
            rows_in=len(source.images),
            rows_out=len(rows),
            refused=refused,
            examples=examples,
        )
        captions = [source.caption_by_row.get(row) for row in rows]
        return index_table(rows, keys, captions, np.concatenate(parts) if parts else self._nothing()), record

    def _prepare(self, image: EncodedImage, work_unit: WorkUnit) -> tuple[torch.Tensor | None, str, str]:
        place = f"row {image.row}"
        if image.data is None:
            return None, NO_IMAGE, place
        try:
            decoded = decode_image(image.data, self._max_pixels, f"{work_unit.uri}: {place}")
        except DataError as error:
            return None, BAD_IMAGE, str(error)
        return self._first.prepare(decoded), "", place

    def _encode(self, batch: list[torch.Tensor]) -> np.ndarray:
        images_b3hw = torch.stack(batch)
        nothing_bd = np.zeros((len(batch), self._width), np.float32)
        embeddings: np.ndarray = concatenated_images(
            [nothing_bd if expert is None else expert.encode_images(images_b3hw) for expert in self._experts]
        )
        return embeddings

    def _nothing(self) -> np.ndarray:
        """No rows, of the right width: a work unit without usable images has a table too."""
        return np.empty((0, len(self._experts) * self._width), np.float32)
