"""Measurements during training: when they are due, and the curve of their results. Without torch, for drivers."""

import json
from dataclasses import dataclass

from mode_ray.run_directory import CURVE_FILE
from mode_ray.storage import Location


@dataclass(frozen=True, kw_only=True)
class MeasureJob:
    """When to measure, and on which pairs.

    Attributes:
        pairs: A parquet file with columns `image` (encoded) and `caption`.
        measurements: Number of measurements over `samples_total` samples.
        samples_before: Samples of the run's parent.
        samples_total: Samples at the end of the run, or of its last child.
    """

    pairs: Location
    measurements: int
    samples_before: int
    samples_total: int

    def due(self, before: int, after: int) -> int | None:
        """Number (from 1) of the last measurement that became due between `before` and `after` samples, or None."""
        done, now = (
            (self.samples_before + samples) * self.measurements // self.samples_total for samples in (before, after)
        )
        return now if now > done else None


def read_curve(folder: Location) -> dict[int, float]:
    """Recall of a run's measurements so far, by number."""
    file = folder / CURVE_FILE
    if not file.exists():
        return {}
    return {int(number): float(recall) for number, recall in json.loads(file.read_text()).items()}
