"""The query side of an index: the experts' text embeddings, each times the weight of its expert.

score(x, l) = sum over c of f_c(x) . (p_c(l) g_c(l)): the inner product of a query with a row of the index is the
ensemble's score. The index holds no weights: one index serves all tasks, and queries that are tasks of their own.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.evaluate import RoutingConfig
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.models.encode import Expert
from mode_ray.models.together import encode_texts
from mode_ray.routing.mix import concatenated_texts, without_experts
from mode_ray.routing.router import NothingKnownError, Router, unknown_text

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
        UsageError: The clustering has no map for that many experts.
    """

    def __init__(
        self,
        experts: Sequence[Expert | None],
        encoder: CaptionEncoder,
        clustering: Clustering,
        routing: RoutingConfig,
    ) -> None:
        self._experts = list(experts)
        self._router = Router(encoder, clustering, len(self._experts), routing)

    def weights(self, texts: Sequence[str], *, as_one_task: bool = False) -> Floats:
        """Routing weights.

        Args:
            texts: The queries.
            as_one_task: Whether all texts together are the task; by default each is a task of its own.

        Returns:
            [texts, experts], or [experts] for one task.

        Raises:
            NothingKnownError: A text has no word that the caption encoder knows.
            UsageError: There are no texts.
        """
        weights: Floats
        if as_one_task:
            routed = self._router.classes([[text] for text in texts])
            unknown = set(range(len(texts))) - set(routed.known)
            if unknown:
                raise NothingKnownError(unknown_text(texts[min(unknown)]))
            weights = routed.weights.weights_c
        else:
            weights = self._router.each(texts, all_known=True)
        missing = [number for number, expert in enumerate(self._experts) if expert is None]
        return without_experts(weights, missing) if missing else weights

    def encode(self, texts: Sequence[str], *, as_one_task: bool = False) -> Floats:
        """Queries for `ImageIndex.search`, [texts, sum of the dimensions]; arguments and errors as `weights`."""
        weights = self.weights(texts, as_one_task=as_one_task)
        encoded = iter(encode_texts([expert for expert in self._experts if expert is not None], texts))
        sides = [None if expert is None else next(encoded) for expert in self._experts]
        nothing_ld = np.zeros_like(next(side for side in sides if side is not None))
        return concatenated_texts([nothing_ld if side is None else side for side in sides], weights)
