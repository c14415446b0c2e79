"""Assign captions inside a Ray Data pipeline of the user's own."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mode_ray.assign.table import DISTANCE, FINE
from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import UsageError


class AssignCaptions:
    """Adds the nearest fine center and the expert to batches of captions; for `Dataset.map_batches`.

        ds.map_batches(AssignCaptions, fn_constructor_args=("runs/my-run/clusters",), concurrency=4)

    Args:
        clusters: Directory of the clustering, a path or URI that every worker can read.
        column: The column with the captions.
        device: Device of the caption encoder: `auto`, `cpu`, `cuda`, ….
        threads: CPU threads of the encoder and the search.

    Raises:
        DataError: The clustering is missing or damaged.
        UsageError: The encoder cannot be found.
    """

    def __init__(self, clusters: str, column: str = "caption", device: str = "auto", threads: int = 1) -> None:
        self._clustering = Clustering.load(clusters)
        self._column = column
        self._device = device
        self._threads = threads

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Add columns to a batch.

        Args:
            batch: Columns by name, as Ray Data's batch format `numpy` has them.

        Returns:
            The batch with `fine` (int32), `distance` (squared, float32) and, for every coarse map, `expert_n<n>`
            (int32). They are -1, NaN and -1 for a missing caption, or one without a word that the encoder knows.

        Raises:
            UsageError: The batch has no such column.
        """
        if self._column not in batch:
            raise UsageError(f"AssignCaptions: no column {self._column!r}; the batch has {sorted(batch)}")
        captions = ["" if caption is None else str(caption) for caption in batch[self._column]]
        fine_b, squared_distance_b = self._clustering.assign(captions, device=self._device, threads=self._threads)
        # Some encoders embed an empty caption; the result has no meaning.
        empty_b = np.array([not caption.strip() for caption in captions], np.bool_)
        fine_b[empty_b], squared_distance_b[empty_b] = -1, np.nan
        experts = {f"expert_n{n}": self._clustering.expert_of(fine_b, n) for n in sorted(self._clustering.coarse)}
        return {**batch, FINE: fine_b, DISTANCE: squared_distance_b, **experts}
