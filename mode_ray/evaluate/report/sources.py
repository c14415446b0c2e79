"""What a report is made of, and the pairs and pictures that it shows of it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mode_ray.assign.stage import FINE
from mode_ray.cluster.calibration import Calibration
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError
from mode_ray.evaluate.measure.measurements import TaskCosines
from mode_ray.evaluate.report.compare import TaskResults
from mode_ray.evaluate.tasks.task import Task
from mode_ray.pairs.images import decode_image
from mode_ray.pairs.index import PairIndex, load_index, nearest_rows
from mode_ray.pairs.reader import PairReader
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.plan import Trial

_SAMPLE_SHARDS = 16
_CAPTIONS_PER_CLUSTER = 3
_IMAGES_PER_EXPERT = 12
_THUMBNAIL_PIXELS = 64


@dataclass(frozen=True)
class ReportSources:
    """What a report is made of.

    Attributes:
        config: The run's config.
        work_units: The run's input.
        directories: Of all stages, by name.
        clustering: The run's clustering.
        trials: All training runs.
        pairs_n: Pairs of each expert.
        tasks: The tasks.
        measured: What was measured by task name, without the cosines.
        results: Results by task name.
        calibration: The temperature of the rule `calibrated`.
    """

    config: RunConfig
    work_units: Sequence[WorkUnit]
    directories: Mapping[str, Location]
    clustering: Clustering
    trials: Sequence[Trial]
    pairs_n: np.ndarray
    tasks: Sequence[Task]
    measured: Mapping[str, TaskCosines]
    results: Mapping[str, TaskResults]
    calibration: Calibration

    @property
    def experts(self) -> list[int]:
        """Ids of the experts that were evaluated: all but those left out on request."""
        left_out = self.config.evaluate.leave_out_experts
        return [expert for expert in range(self.config.train.experts) if expert not in left_out]

    @property
    def group_m(self) -> np.ndarray:
        """Expert of every fine center."""
        return self.clustering.coarse[self.config.train.experts]

    @cached_property
    def near_pairs(self) -> PairIndex:
        """The pairs nearest to each center, of the first shards."""
        index = load_index(self.directories["assign"], self.work_units[:_SAMPLE_SHARDS])
        return index.take(nearest_rows(index, len(self.clustering.centers_md), _CAPTIONS_PER_CLUSTER))

    @cached_property
    def near_captions(self) -> Mapping[int, list[str]]:
        """Captions nearest to each center, by fine cluster."""
        reader = PairReader(self.near_pairs, self.config.captions)
        pairs = reader.read(range(len(self.near_pairs)))
        captions: dict[int, list[str]] = {}
        for fine, pair in zip(self.near_pairs.table[FINE].to_pylist(), pairs, strict=True):
            captions.setdefault(fine, []).append(pair.caption)
        return captions

    def thumbnails(self) -> dict[int, list[bytes]]:
        """Small PNGs of a few images of each expert, from different fine clusters."""
        reader = PairReader(self.near_pairs, self.config.captions)
        expert_p = self.group_m[self.near_pairs.table[FINE].to_numpy()]
        pictures: dict[int, list[bytes | None]] = {}
        for expert in range(self.config.train.experts):
            positions = np.flatnonzero(expert_p == expert)
            spread = positions[np.linspace(0, len(positions) - 1, min(_IMAGES_PER_EXPERT, len(positions))).astype(int)]
            pairs = reader.read(spread.tolist())
            pictures[expert] = [_thumbnail(pair.image, self.config, pair.place) for pair in pairs]
        return {expert: [picture for picture in found if picture] for expert, found in pictures.items()}


def _thumbnail(image: bytes, config: RunConfig, place: str) -> bytes | None:
    """A small PNG, or None for an image that cannot be decoded (training counts those)."""
    try:
        picture = decode_image(image, config.limits.max_image_pixels, place)
    except DataError:
        return None
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
