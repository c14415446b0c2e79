"""Computes the features of one work unit's assigned pairs."""

import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mode_ray.assign.table import read_assignments
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError
from mode_ray.features.table import Half, feature_table
from mode_ray.models.clip import ClipModel, build_clip
from mode_ray.models.crops import TrainTransform
from mode_ray.models.fast_tokens import fast_tokenizer
from mode_ray.models.locking import lock_towers
from mode_ray.models.pixels import PixelNormaliser
from mode_ray.models.preprocess import ImageGeometry, ImageInput
from mode_ray.models.tokens import CachedTokenizer
from mode_ray.models.trunks import divide
from mode_ray.pairs.images import decode_pixels
from mode_ray.pairs.index import PairIndex, index_columns, index_rows
from mode_ray.pairs.reader import Pair, PairReader
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.devices import pick_device
from mode_ray.util.read_ahead import read_ahead

UNDECODABLE = "undecodable image"


class FeatureWorker:
    """Runs the locked trunks over the pairs of a work unit; see `UnitWorker`.

    Args:
        config: The run's config.
        assignments: Directory of the assign stage.

    Raises:
        UsageError: The model cannot be built, or its towers have no trunk.
    """

    def __init__(self, config: RunConfig, assignments: Location) -> None:
        torch.set_num_threads(config.features.pool.threads_per_actor)
        self._config = config
        self._assignments = assignments
        self._device = pick_device(config.features.trunk.device)
        clip = build_clip(config.train.model, config.train.seed, logit_bias=config.train.loss.kind == "siglip")
        lock_towers(clip.module, config.train.model.lock)
        clip.module.eval().to(self._device)
        self._trunks = divide(clip.module)
        self._views = Views.of(clip, config)
        self._normalise = PixelNormaliser(clip.module, self._device, torch.float32)
        self._tokenizer = CachedTokenizer(fast_tokenizer(clip.tokenizer))

    def read(self, work_unit: WorkUnit) -> pa.Table:
        """Read which pairs are assigned. Images are read while the trunk computes, because they may fill the memory.

        Raises:
            DataError: The unit has no assignments: it was quarantined.
        """
        return read_assignments(self._assignments, work_unit.unit)

    def compute(self, work_unit: WorkUnit, source: pa.Table) -> tuple[pa.Table, UnitRecord]:
        """Compute the features of images and captions in batches."""
        index = PairIndex([work_unit], index_rows(source, 0, index_columns(tars=work_unit.format == "webdataset")))
        reader = PairReader(index, self._config.captions)
        size = self._config.features.trunk.batch_size
        starts = range(0, len(index), size)
        read = partial(_read, reader, len(index), size)
        images, texts, problems = [], [], []
        for start, pairs in zip(starts, read_ahead(read, starts, ahead=1), strict=True):
            found = self._images(work_unit, start, pairs)
            images.append(found[0])
            problems += found[1]
            texts.append(self._texts([pair.caption for pair in pairs]))
        bad = [problem for problem in problems if problem is not None]
        record = UnitRecord(
            unit=work_unit.unit,
            source=work_unit.uri,
            rows_in=len(index),
            rows_out=len(index) - len(bad),
            refused={UNDECODABLE: len(bad)} if bad else {},
            examples={UNDECODABLE: bad[0]} if bad else {},
        )
        return feature_table(source, np.concatenate(images), np.concatenate(texts), problems), record

    def _images(self, work_unit: WorkUnit, start: int, pairs: Sequence[Pair]) -> tuple[Half, list[str | None]]:
        """Features of all views [b, views, k], zeros for images that cannot be decoded, and why they cannot."""
        pixels, problems = [], []
        for place, pair in enumerate(pairs, start):
            try:
                pixels.append(self._views.prepare(pair, work_unit.unit, place))
                problems.append(None)
            except DataError as error:
                pixels.append(self._views.nothing())
                problems.append(str(error))
        images = torch.from_numpy(np.concatenate(pixels)).to(self._device)
        with torch.inference_mode():
            rows = self._trunks.image.trunk(self._normalise(images)).half().cpu().numpy()
        rows_bvk: Half = rows.reshape(len(pairs), self._views.count, -1).copy()
        rows_bvk[[problem is not None for problem in problems]] = 0
        return rows_bvk, problems

    def _texts(self, captions: Sequence[str]) -> Half:
        distinct = list(dict.fromkeys(captions))
        with torch.inference_mode():
            rows: Half = self._trunks.text.trunk(self._tokenizer(distinct).to(self._device)).half().cpu().numpy()
        places = {caption: place for place, caption in enumerate(distinct)}
        return rows[[places[caption] for caption in captions]]


class Views:
    """The views of an image that the trunk sees: random crops, or the one of evaluation.

    Attributes:
        count: Views of an image.
    """

    def __init__(self, config: RunConfig, transform: TrainTransform, evaluation: ImageInput) -> None:
        self._config = config
        self._transform = transform
        self._evaluation = evaluation
        self.count = config.features.views if config.features.augmented else 1

    @classmethod
    def of(cls, clip: ClipModel, config: RunConfig) -> "Views":
        """The views for a model."""
        geometry = ImageGeometry.of_model(clip.config)
        evaluation = ImageInput(geometry, config.limits.max_image_pixels, config.images)
        return cls(config, TrainTransform.of(clip.train_transform), evaluation)

    def prepare(self, pair: Pair, unit: str, place: int) -> np.ndarray:
        """The views of a pair's image, uint8 [views, 3, h, w]; the same in every run with this seed.

        Args:
            pair: The pair.
            unit: Its work unit.
            place: Its place in the unit.

        Raises:
            DataError: The image is missing or cannot be decoded.
        """
        if not self._config.features.augmented:
            pixels_hw3 = self._evaluation.prepare(pair.encoded(), pair.place)
            return np.ascontiguousarray(pixels_hw3.transpose(2, 0, 1))[None]
        decoded = decode_pixels(pair.encoded(), self._config.limits.max_image_pixels, pair.place, self._config.images)
        pixels: Any = torch.from_numpy(decoded).permute(2, 0, 1)
        seed = zlib.crc32(f"{self._config.train.seed} {unit}".encode())
        positions = np.arange(place * self.count, (place + 1) * self.count)
        crops = [self._transform.crop(pixels, drawn) for drawn in self._transform.draw(seed, positions)]
        views: np.ndarray = torch.stack(crops).numpy()
        return views

    def nothing(self) -> np.ndarray:
        """Black views, for an image that has none."""
        return np.zeros((self.count, 3, *self._transform.size), np.uint8)


def _read(reader: PairReader, pairs: int, size: int, start: int) -> list[Pair]:
    return reader.read(range(start, min(start + size, pairs)))
