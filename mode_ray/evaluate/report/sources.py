"""The inputs of a report, loaded once, and thumbnails of the training images of each expert."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mode_ray.assign.table import FINE
from mode_ray.cluster.calibration import Calibration
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError
from mode_ray.evaluate.measure.measurements import TaskCosines
from mode_ray.evaluate.report.compare import TaskResults
from mode_ray.evaluate.tasks.task import Task
from mode_ray.pairs.images import decode_image
from mode_ray.pairs.index import load_index, nearest_rows
from mode_ray.pairs.reader import Pair, PairReader
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.plan import Trial

_SAMPLE_SHARDS = 16
_PAIRS_PER_CLUSTER = 3
_IMAGES_PER_EXPERT = 12
_THUMBNAIL_PIXELS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportSources:
    """The inputs of a report.

    Attributes:
        config: Config of the run.
        work_units: Input of the run.
        directories: Directories of all stages, by name.
        clustering: Clustering of the run.
        captions: Captions near every fine center, nearest first; empty lists without an atlas.
        trials: All training runs.
        pairs_n: Number of pairs of each expert.
        tasks: The tasks.
        measured: Measurements by task name, without the cosines.
        results: Results by task name.
        calibration: The temperature of the rule `calibrated`.
    """

    config: RunConfig
    work_units: Sequence[WorkUnit]
    directories: Mapping[str, Location]
    clustering: Clustering
    captions: Sequence[Sequence[str]]
    trials: Sequence[Trial]
    pairs_n: np.ndarray
    tasks: Sequence[Task]
    measured: Mapping[str, TaskCosines]
    results: Mapping[str, TaskResults]
    calibration: Calibration

    @property
    def experts(self) -> list[int]:
        """Ids of the evaluated experts: all except those that the config leaves out."""
        left_out = self.config.evaluate.leave_out_experts
        return [expert for expert in range(self.config.train.experts) if expert not in left_out]

    @property
    def group_m(self) -> np.ndarray:
        """Expert of every fine center."""
        return self.clustering.coarse[self.config.train.experts]


def read_thumbnails(sources: ReportSources) -> dict[int, list[bytes]]:
    """Small PNGs of a few images of each expert, from different fine clusters.

    The candidates are the pairs in the first shards that are nearest to the center of each cluster. An image that
    cannot be decoded is left out. Training counts those.
    """
    config, group_m = sources.config, sources.group_m
    index = load_index(sources.directories["assign"], sources.work_units[:_SAMPLE_SHARDS])
    index = index.take(nearest_rows(index, len(group_m), _PAIRS_PER_CLUSTER))
    reader = PairReader(index, config.captions)
    expert_p = group_m[index.column(FINE)]
    thumbnails: dict[int, list[bytes]] = {}
    for expert in range(config.train.experts):
        positions = np.flatnonzero(expert_p == expert)
        spread = positions[np.linspace(0, len(positions) - 1, min(_IMAGES_PER_EXPERT, len(positions))).astype(int)]
        found = (_thumbnail(pair, config) for pair in reader.read(spread.tolist()))
        thumbnails[expert] = [picture for picture in found if picture is not None]
    return thumbnails


def _thumbnail(pair: Pair, config: RunConfig) -> bytes | None:
    """A small PNG, or None for an image that cannot be decoded."""
    try:
        picture = decode_image(pair.encoded(), config.limits.max_image_pixels, pair.place, config.images)
    except DataError:
        return None
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
