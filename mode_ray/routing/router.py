"""From texts to routing weights: the caption encoder, the clustering and a rule together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from mode_ray.cluster.calibration import calibration_of
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.evaluate import RoutingConfig, RoutingRule
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.errors import DataError, UsageError
from mode_ray.routing.weights import (
    ExpertCenters,
    RoutingWeights,
    mean_direction,
    per_query_weights,
    routing_weights,
)

Floats = npt.NDArray[np.float64]


class NothingKnownError(DataError):
    """The caption encoder knows no word of the texts."""


@dataclass(frozen=True, eq=False)
class ClassRouting:
    """The routing of a task of classes.

    Attributes:
        weights: The routing weights of the task. Its arrays over texts have one row per known class.
        known: Positions of the classes that the caption encoder knows a word of. The others do not influence the
            weights.
    """

    weights: RoutingWeights
    known: Sequence[int]


def expert_centers(clustering: Clustering, n: int) -> ExpertCenters:
    """A clustering's centers for n experts, with the temperature that was fitted for them.

    Raises:
        UsageError: The clustering has no map for n experts.
    """
    return ExpertCenters(clustering.centers_md, clustering.experts_of(n), n, calibration_of(clustering, n).temperature)


class Router:
    """Computes routing weights from texts. The methods block; use a router from one thread at a time.

    Args:
        encoder: The caption encoder that the clustering was made with.
        clustering: The clustering.
        n: Number of experts.
        config: The rule and its parameters.

    Raises:
        DataError: The clustering was made with another encoder.
        UsageError: The clustering has no map for n experts.
    """

    def __init__(self, encoder: CaptionEncoder, clustering: Clustering, n: int, config: RoutingConfig) -> None:
        clustering.compatible_with(encoder.name, encoder.dimension)
        self._encoder = encoder
        self._centers = expert_centers(clustering, n)
        self._config = config

    @property
    def group_m(self) -> npt.NDArray[np.integer]:
        """The expert of every fine center."""
        return self._centers.group_m

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The caption encoder's embeddings, [texts, d]; zeros for a text without a word that it knows."""
        return self._encoder.encode(list(texts))

    def classes(
        self,
        class_texts: Sequence[Sequence[str]],
        rule: RoutingRule | None = None,
        flat_td: npt.NDArray[np.float32] | None = None,
    ) -> ClassRouting:
        """Weights of a task; a class is the mean direction of the embeddings of its texts.

        Args:
            class_texts: For every class its name in every template.
            rule: Another rule than the config's.
            flat_td: The embeddings of all these texts in their order, if they are known.

        Raises:
            NothingKnownError: The caption encoder knows no word of any class.
            UsageError: There are no classes.
        """
        if flat_td is None:
            flat_td = self.encode([text for texts in class_texts for text in texts])
        ends = np.cumsum([len(texts) for texts in class_texts])[:-1]
        rows = [_direction(rows_td) for rows_td in np.split(flat_td, ends)]
        known = [position for position, row_d in enumerate(rows) if row_d is not None]
        return ClassRouting(self._weights([row_d for row_d in rows if row_d is not None], rule), known)

    def each(
        self,
        texts: Sequence[str],
        rule: RoutingRule | None = None,
        texts_ld: npt.NDArray[np.float32] | None = None,
        *,
        all_known: bool = False,
    ) -> Floats:
        """Weights of every text as a task of its own, [texts, experts].

        Args:
            texts: The texts.
            rule: Another rule than the config's.
            texts_ld: Their embeddings, if they are known.
            all_known: Whether a text without a word that the caption encoder knows is an error; by default it gets
                the mean weights of the others.

        Raises:
            NothingKnownError: The caption encoder knows no word of any text or, with `all_known`, of one of them.
            UsageError: There are no texts.
        """
        if texts_ld is None:
            texts_ld = self.encode(texts)
        known_l = texts_ld.any(axis=1)
        if all_known and not known_l.all():
            raise NothingKnownError(unknown_text(texts[int(known_l.argmin())]))
        if len(texts) and not known_l.any():
            raise NothingKnownError(_NOTHING_KNOWN)
        weights_kc = per_query_weights(texts_ld[known_l], self._centers, self._config, rule)
        weights_lc = np.tile(weights_kc.mean(axis=0), (len(texts), 1))
        weights_lc[known_l] = weights_kc
        return weights_lc

    def _weights(self, rows: Sequence[npt.NDArray[np.float32]], rule: RoutingRule | None) -> RoutingWeights:
        if not rows:
            raise NothingKnownError(_NOTHING_KNOWN)
        return routing_weights(np.stack(rows), self._centers, self._config, rule)


def unknown_text(text: str) -> str:
    """The message for a text that must be known and is not."""
    return f"query {text!r}: no word that the caption encoder knows, so it cannot be routed"


_NOTHING_KNOWN = "the caption encoder knows no word of any label or text, so there is nothing to route by"


def _direction(rows_td: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """The mean direction of a class's texts; None where the encoder knows no word of one."""
    try:
        return mean_direction(rows_td)
    except DataError:
        return None


def routing_weights_of(
    text_embeddings: npt.NDArray[np.floating],
    clustering: Clustering,
    n: int,
    rule: RoutingRule = "calibrated",
    config: RoutingConfig | None = None,
) -> RoutingWeights:
    """Routing weights from embeddings of a task's texts.

    Args:
        text_embeddings: Unit rows [l, d] of the clustering's encoder, one per text of the task.
        clustering: The clustering.
        n: Number of experts.
        rule: The routing rule.
        config: Parameters of the rules; by default mode_ray's.

    Raises:
        UsageError: There are no texts, no such rule, or the clustering has no map for n experts.
        DataError: Shapes do not fit, a row is not of unit length, or a number is not finite.
    """
    if rule not in get_args(RoutingRule):
        raise UsageError(f"rule={rule!r}: use one of {', '.join(get_args(RoutingRule))}")
    return routing_weights(text_embeddings, expert_centers(clustering, n), config or RoutingConfig(), rule)
