"""What is to be measured while a run trains, and the curve that it leaves; without torch, for drivers."""

import json
from dataclasses import dataclass

from mode_ray.run_directory import CURVE_FILE
from mode_ray.storage import Location


@dataclass(frozen=True, kw_only=True)
class MeasureJob:
    """When to measure, and on what.

    Attributes:
        pairs: A parquet file with columns `image` (encoded) and `caption`.
        measurements: How often, over all of the samples.
        samples_before: Samples that led to the run's first, by its parent.
        samples_total: Samples at the end of the last run.
    """

    pairs: Location
    measurements: int
    samples_before: int
    samples_total: int

    def due(self, before: int, after: int) -> int | None:
        """Number of the measurement (from 1) that is due when a run has gone from `before` to `after` samples.

        Of several at once, the last.
        """
        done, now = (
            (self.samples_before + samples) * self.measurements // self.samples_total for samples in (before, after)
        )
        return now if now > done else None


def read_curve(folder: Location) -> dict[int, float]:
    """Recall by number of the measurement, as far as a run has come."""
    file = folder / CURVE_FILE
    if not file.exists():
        return {}
    return {int(number): float(recall) for number, recall in json.loads(file.read_text()).items()}
