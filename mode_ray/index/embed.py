"""Embeds images once with all experts: one file per work unit, with the experts' unit embeddings side by side.

The embeddings depend on no task: the query carries the weights (`mode_ray.index.query`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from mode_ray.captions.read import read_captions
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError
from mode_ray.index.images import EncodedImage, read_images
from mode_ray.index.vectors import index_table
from mode_ray.models.preprocess import ImageInput
from mode_ray.models.together import encode_pixels, load_experts
from mode_ray.pairs.images import Pixels
from mode_ray.routing.mix import concatenated_images
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.read_ahead import read_ahead

NO_IMAGE = "no image"
BAD_IMAGE = "undecodable image"


class ImagesOfUnit(NamedTuple):
    """What a worker reads: the encoded images of a unit, and the first caption of each row that has one."""

    images: Sequence[EncodedImage]
    caption_by_row: Mapping[int, str]


class IndexWorker:
    """Embeds the images of one work unit; see `UnitWorker`.

    Args:
        config: The run's config.
        models: The experts' folders, in order of their ids; None for an expert that is left out: its block is zeros.

    Raises:
        DataError: A model is missing or damaged; names the file.
    """

    def __init__(self, config: RunConfig, models: Sequence[Location | None]) -> None:
        placement = config.index.placement
        torch.set_num_threads(config.index.pool.threads_per_actor)
        self._captions = config.captions
        present = {expert: folder for expert, folder in enumerate(models) if folder is not None}
        self._experts = load_experts(present, placement.device, config.index.precision)
        self._n = len(models)
        # Experts of one run share their architecture.
        first = next(iter(self._experts.values()))
        self._width = first.dimension
        self._images = ImageInput(first.geometry, config.limits.max_image_pixels, config.images)
        self._batch_size = placement.batch_size
        self._threads = config.index.pool.threads_per_actor

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
        """Embed them in batches; threads decode the next ones meanwhile."""
        rows: list[int] = []
        keys: list[str] = []
        parts: list[np.ndarray] = []
        batch: list[Pixels] = []
        refused: dict[str, int] = {}
        examples: dict[str, str] = {}
        found = read_ahead(
            partial(self._prepare, work_unit), source.images, ahead=2 * self._batch_size, threads=self._threads
        )
        for image, (prepared, reason, place) in zip(source.images, found, strict=True):
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

    def _prepare(self, work_unit: WorkUnit, image: EncodedImage) -> tuple[Pixels | None, str, str]:
        place = f"row {image.row}"
        if image.data is None:
            return None, NO_IMAGE, image.problem or place
        try:
            return self._images.prepare(image.data, f"{work_unit.uri}: {place}"), "", place
        except DataError as error:
            return None, BAD_IMAGE, str(error)

    def _encode(self, batch: list[Pixels]) -> np.ndarray:
        images_bhw3 = np.stack(batch)
        nothing_bd = np.zeros((len(batch), self._width), np.float32)
        encoded = dict(zip(self._experts, encode_pixels(list(self._experts.values()), images_bhw3), strict=True))
        embeddings: np.ndarray = concatenated_images([encoded.get(expert, nothing_bd) for expert in range(self._n)])
        return embeddings

    def _nothing(self) -> np.ndarray:
        """No rows, of the right width: a work unit without usable images has a table too."""
        return np.empty((0, self._n * self._width), np.float32)
