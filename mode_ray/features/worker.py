"""Computes the features of one work unit's pairs. An image with several captions goes through the trunk once."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mode_ray.captions.clean import CaptionTable
from mode_ray.captions.read import read_captions
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError
from mode_ray.features.views import Views
from mode_ray.models.clip import build_clip
from mode_ray.models.crops import transform_of
from mode_ray.models.fast_tokens import fast_tokenizer
from mode_ray.models.locking import lock_towers
from mode_ray.models.pixels import PixelNormaliser, pixel_layout
from mode_ray.models.tokens import CachedTokenizer
from mode_ray.models.trunks import divide
from mode_ray.pairs.feature_table import FeatureNote, Half, PairFeatures, feature_table
from mode_ray.pairs.index import PairIndex, index_columns, index_rows
from mode_ray.pairs.reader import Pair, PairReader, caption_id
from mode_ray.stages.manifest import UnitRecord
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.util.devices import pick_device
from mode_ray.util.read_ahead import read_ahead

UNDECODABLE = "image cannot be decoded"

Float32Array = npt.NDArray[np.float32]


class FeatureWorker:
    """Runs the locked trunks over the pairs of a work unit; see `UnitWorker`.

    Args:
        config: The run's config.

    Raises:
        UsageError: The model cannot be built, or a tower has no trunk.
    """

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.features.pool.threads_per_actor)
        self._config = config
        self._device = pick_device(config.features.trunk.device)
        clip = build_clip(config.train.model, config.train.seed, logit_bias=config.train.loss.kind == "siglip")
        lock_towers(clip.module, config.train.model.lock)
        self._layout = pixel_layout(clip.module)
        clip.module.eval().to(self._device).to(memory_format=self._layout)
        self._batch_size = config.features.trunk.batch_size or (32 if self._device.type == "cpu" else 256)
        self._trunks = divide(clip.module)
        self._views = Views(clip, config)
        self._note = FeatureNote(self._trunks.trunk_hash, self._views.count, transform_of(clip))
        self._normalise = PixelNormaliser(clip.module, self._device, torch.float32)
        self._tokenizer = CachedTokenizer(fast_tokenizer(clip.tokenizer))

    def read(self, work_unit: WorkUnit) -> CaptionTable:
        """Read and clean the captions. Images are read while the trunk computes, because they may fill the memory."""
        return read_captions(work_unit, self._config.captions)

    def compute(self, work_unit: WorkUnit, source: CaptionTable) -> tuple[pa.Table, UnitRecord]:
        """Compute the features of images and captions in batches.

        Raises:
            DataError: Features are not finite numbers in float16.
        """
        captions, row_p = source.table, source.table["row"].to_numpy()
        schema = index_columns(tars=work_unit.format == "webdataset")
        reader = PairReader(PairIndex.of([work_unit], index_rows(captions, 0, schema)), self._config.captions)
        _, first_i, image_p = np.unique(row_p, return_index=True, return_inverse=True)
        images, problems = self._image_features(work_unit, reader, row_p, first_i)
        texts = captions["caption"].to_pylist()
        features = PairFeatures(
            image_bvk=_half(images, work_unit)[image_p],
            text_bk=_half(self.text_features(texts), work_unit),
            caption_id_b=np.array([caption_id(text) for text in texts], np.int64),
            problems=[problems[image] for image in image_p.tolist()],
        )
        bad = [problem for problem in features.problems if problem is not None]
        record = UnitRecord(
            unit=work_unit.unit,
            source=work_unit.uri,
            rows_in=source.rows_in,
            rows_out=len(texts) - len(bad),
            refused={**source.refused, **({UNDECODABLE: len(bad)} if bad else {})},
            examples={**source.examples, **({UNDECODABLE: bad[0]} if bad else {})},
        )
        return feature_table(captions, features, self._note), record

    def image_features(self, pixels: npt.NDArray[np.uint8]) -> Float32Array:
        """Features of views uint8 [b, 3, h, w], float32 [b, k]."""
        with torch.inference_mode():
            images = self._normalise(torch.from_numpy(pixels).to(self._device, memory_format=self._layout))
            features: Float32Array = self._trunks.image.trunk(images).float().cpu().numpy()
        return features

    def text_features(self, captions: Sequence[str]) -> Float32Array:
        """Features of captions, float32 [b, k]."""
        distinct = list(dict.fromkeys(captions)) or [""]
        size, parts = self._batch_size, []
        with torch.inference_mode():
            for start in range(0, len(distinct), size):
                tokens = self._tokenizer(distinct[start : start + size]).to(self._device)
                parts.append(self._trunks.text.trunk(tokens).float().cpu().numpy())
        places = {caption: place for place, caption in enumerate(distinct)}
        features: Float32Array = np.concatenate(parts)[[places[caption] for caption in captions]]
        return features

    def _image_features(
        self, work_unit: WorkUnit, reader: PairReader, row_p: npt.NDArray[np.int64], first_i: npt.NDArray[np.intp]
    ) -> tuple[Float32Array, list[str | None]]:
        """Features [i, views, k] of the images at some pairs, and why they have none; those without have zeros."""
        size = max(1, self._batch_size // self._views.count)
        parts: list[Float32Array] = []
        problems: list[str | None] = []
        starts = range(0, len(first_i), size)
        read: Callable[[int], list[Pair]] = partial(_read, reader, first_i, size)
        for start, pairs in zip(starts, read_ahead(read, starts, ahead=1), strict=True):
            pixels = []
            for pair, row in zip(pairs, row_p[first_i[start : start + size]].tolist(), strict=True):
                try:
                    pixels.append(self._views.prepare(pair, work_unit.unit, row))
                    problems.append(None)
                except DataError as error:
                    pixels.append(self._views.nothing())
                    problems.append(str(error))
            part = self.image_features(np.concatenate(pixels)).reshape(len(pairs), self._views.count, -1)
            part[[problem is not None for problem in problems[start:]]] = 0
            parts.append(part)
        if not parts:  # a unit without captions
            parts = [self.image_features(self._views.nothing()).reshape(1, self._views.count, -1)[:0]]
        return np.concatenate(parts), problems


def _read(reader: PairReader, first_i: npt.NDArray[np.intp], size: int, start: int) -> list[Pair]:
    return reader.read(first_i[start : start + size])


def _half(features: Float32Array, work_unit: WorkUnit) -> Half:
    """Features as they are stored.

    Raises:
        DataError: Some are not finite.
    """
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    if not np.isfinite(half).all():
        raise DataError(
            f"{work_unit.uri}: features of this trunk are no finite numbers in float16; train with another "
            "train.data.mode, or other weights"
        )
    return half
