"""The query side of an index: the experts' text embeddings, each times the weight of its expert.

score(x, l) = sum over c of f_c(x) . (p_c(l) g_c(l)): the inner product with what the index holds is the ensemble's
score. The index has no weights in it, so every task, and every query as a task of its own, searches the same index.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.calibration import calibration_of
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.evaluate import RoutingConfig
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.errors import DataError
from mode_ray.models.encode import Expert
from mode_ray.routing.mix import concatenated_texts, without_experts
from mode_ray.routing.weights import per_query_weights, routing_weights

Floats = npt.NDArray[np.floating]


class QueryEncoder:
    """Turns texts into queries for an index.

    Args:
        experts: In order of their ids; None for one that is left out: its weight goes to the others.
        encoder: The caption encoder that the clustering was made with.
        clustering: The run's clustering.
        routing: The rule and its parameters.

    Raises:
        DataError: The clustering was made with another encoder.
        UsageError: It has no map for that many experts.
    """

    def __init__(
        self,
        experts: Sequence[Expert | None],
        encoder: CaptionEncoder,
        clustering: Clustering,
        routing: RoutingConfig,
    ) -> None:
        clustering.compatible_with(encoder.name, encoder.dimension)
        self._experts = list(experts)
        self._encoder = encoder
        self._clustering = clustering
        self._routing = routing
        self._group_m = clustering.experts_of(len(self._experts))
        self._temperature = calibration_of(clustering, len(self._experts)).temperature

    def weights(self, texts: Sequence[str], *, as_one_task: bool = False) -> Floats:
        """Routing weights.

        Args:
            texts: The queries.
            as_one_task: Whether all texts together are the task; by default each is a task of its own.

        Returns:
            [texts, experts], or [experts] for one task.

        Raises:
            DataError: A text has no word that the caption encoder knows.
            UsageError: There are no texts.
        """
        texts_ld = self._encoder.encode(list(texts))
        for text, row_d in zip(texts, texts_ld, strict=True):
            if not row_d.any():
                raise DataError(f"query {text!r}: no word that the caption encoder knows, so it cannot be routed")
        centers_md, n, fitted = self._clustering.centers_md, len(self._experts), self._temperature
        weights: Floats
        if as_one_task:
            weights = routing_weights(
                texts_ld, centers_md, self._group_m, self._routing, n_experts=n, fitted_temperature=fitted
            ).weights_c
        else:
            weights = per_query_weights(
                texts_ld, centers_md, self._group_m, self._routing, n_experts=n, fitted_temperature=fitted
            )
        missing = [number for number, expert in enumerate(self._experts) if expert is None]
        return without_experts(weights, missing) if missing else weights

    def encode(self, texts: Sequence[str], *, as_one_task: bool = False) -> Floats:
        """Queries for `ImageIndex.search`, [texts, sum of the dimensions]; arguments and errors as `weights`."""
        weights = self.weights(texts, as_one_task=as_one_task)
        encoded = [None if expert is None else expert.encode_texts(texts) for expert in self._experts]
        nothing_ld = np.zeros_like(next(side for side in encoded if side is not None))
        return concatenated_texts([nothing_ld if side is None else side for side in encoded], weights)
