"""From a task's definition to its weights over the experts; in this process, the text encoder runs once a task."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mode_ray.config.evaluate import RoutingRule
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.errors import DataError
from mode_ray.routing.weights import mean_direction, per_query_weights, routing_weights
from mode_ray.serve.service.errors import ServiceError
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_definition import TaskDefinition

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NearestCluster:
    """The fine cluster that a class or text lies in.

    Attributes:
        text: The class name or text.
        fine: The cluster.
        expert: Whose it is.
        squared_distance: To its center.
    """

    text: str
    fine: int
    expert: int
    squared_distance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutedTask:
    """A task's weights, and what they rest on.

    Attributes:
        definition: The task.
        weights_c: Over all experts, sum 1.
        entropy: Of the weights, over log n.
        clusters: Where its classes lie.
        unknown: Names that the caption encoder has no word of: they have no say in the weights.
    """

    definition: TaskDefinition
    weights_c: Floats
    entropy: float
    clusters: Sequence[NearestCluster]
    unknown: Sequence[str]


class TaskRouter:
    """Weighs the experts; its methods block, and are for one thread at a time.

    Args:
        served: Clustering and routing parameters.
        encoder: The caption encoder of the clustering.
    """

    def __init__(self, served: ServedRun, encoder: CaptionEncoder) -> None:
        self._served = served
        self._encoder = encoder
        self._group_m = served.clustering.experts_of(served.n)

    def route(self, definition: TaskDefinition) -> RoutedTask:
        """Weights of a task, as the evaluation weighs it: a class is the mean direction of its texts.

        Raises:
            ServiceError: The caption encoder knows no word of any class.
        """
        classes = self._class_embeddings(definition.class_texts())
        known = [number for number, row_d in enumerate(classes) if row_d is not None]
        texts_ld = self._known(classes)
        served = self._served
        weights = routing_weights(
            texts_ld,
            served.clustering.centers_md,
            self._group_m,
            served.config.routing,
            definition.rule,
            n_experts=served.n,
            fitted_temperature=served.fitted_temperature,
        )
        names = definition.names
        return RoutedTask(
            definition=definition,
            weights_c=weights.weights_c,
            entropy=weights.normalised_entropy,
            clusters=[
                NearestCluster(
                    text=names[number],
                    fine=int(fine),
                    expert=int(self._group_m[fine]),
                    squared_distance=float(squared),
                )
                for number, fine, squared in zip(
                    known, weights.nearest_fine_l, weights.nearest_squared_distance_l, strict=True
                )
            ],
            unknown=[name for name, row_d in zip(names, classes, strict=True) if row_d is None],
        )

    def weights_of_each(self, texts: Sequence[str], rule: RoutingRule) -> Floats:
        """Weights of every text as a task of its own, [texts, experts]; of unknown texts those of the others' mean.

        Raises:
            ServiceError: The caption encoder knows no word of any text.
        """
        embeddings_ld = self._encoder.encode(list(texts))
        known_l = embeddings_ld.any(axis=1)
        served = self._served
        weights_kc = per_query_weights(
            self._known(list(embeddings_ld[known_l])),
            served.clustering.centers_md,
            self._group_m,
            served.config.routing,
            rule,
            n_experts=served.n,
            fitted_temperature=served.fitted_temperature,
        )
        weights_lc = np.broadcast_to(weights_kc.mean(axis=0), (len(texts), served.n)).copy()
        weights_lc[known_l] = weights_kc
        return weights_lc

    def _class_embeddings(self, class_texts: Sequence[Sequence[str]]) -> list[npt.NDArray[np.float32] | None]:
        flat_td = self._encoder.encode([text for texts in class_texts for text in texts])
        ends = np.cumsum([len(texts) for texts in class_texts])
        return [_direction(rows_td) for rows_td in np.split(flat_td, ends[:-1])]

    def _known(self, rows: Sequence[npt.NDArray[np.float32] | None]) -> npt.NDArray[np.float32]:
        known = [row_d for row_d in rows if row_d is not None]
        if not known:
            raise ServiceError(
                "unroutable", "the caption encoder knows no word of any label or text, so there is nothing to route by"
            )
        return np.stack(known)


def class_rows(flat_td: npt.NDArray[np.float32], class_texts: Sequence[Sequence[str]]) -> npt.NDArray[np.float32]:
    """One unit row a class, of an expert's embeddings of all its texts, as `zero_shot_classifier` makes them."""
    if all(len(texts) == 1 for texts in class_texts):
        return flat_td
    ends = np.cumsum([len(texts) for texts in class_texts])
    return np.stack([mean_direction(rows_td) for rows_td in np.split(flat_td, ends[:-1])])


def _direction(rows_td: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """The mean direction of a class's texts; None where the encoder knows no word of one."""
    try:
        return mean_direction(rows_td)
    except DataError:
        return None
