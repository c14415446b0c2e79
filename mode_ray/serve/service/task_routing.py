"""From the definition of a task to its weights over the experts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mode_ray.config.evaluate import RoutingRule
from mode_ray.ensemble.task import NearestCluster
from mode_ray.routing.router import NothingKnownError, Router
from mode_ray.routing.weights import mean_direction
from mode_ray.serve.service.errors import ServiceError
from mode_ray.serve.service.task_definition import TaskDefinition

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutedTask:
    """A task with its weights and the reasons for them.

    Attributes:
        definition: The task.
        weights_c: Over all experts; they sum to 1.
        entropy: Entropy of the weights over log n.
        clusters: The nearest fine cluster of every class that the caption encoder knows a word of.
        unknown: Classes without such a word; they do not influence the weights.
    """

    definition: TaskDefinition
    weights_c: Floats
    entropy: float
    clusters: Sequence[NearestCluster]
    unknown: Sequence[str]


def route(router: Router, definition: TaskDefinition) -> RoutedTask:
    """The weights of a task, as the evaluation computes them.

    Raises:
        ServiceError: The caption encoder knows no word of any class.
    """
    try:
        routed = router.classes(definition.class_texts(), definition.rule)
    except NothingKnownError as error:
        raise ServiceError("unroutable", str(error)) from None
    names, weights = definition.names, routed.weights
    nearest = zip(routed.known, weights.nearest_fine_l, weights.nearest_squared_distance_l, strict=True)
    return RoutedTask(
        definition=definition,
        weights_c=weights.weights_c,
        entropy=weights.normalised_entropy,
        clusters=[
            NearestCluster(
                label=names[position],
                fine=int(fine),
                expert=int(router.group_m[fine]),
                squared_distance=float(squared),
            )
            for position, fine, squared in nearest
        ],
        unknown=[name for position, name in enumerate(names) if position not in set(routed.known)],
    )


def weights_of_each(router: Router, texts: Sequence[str], rule: RoutingRule) -> Floats:
    """Weights of every text as a task of its own, [texts, experts]; see `Router.each`.

    Raises:
        ServiceError: The caption encoder knows no word of any text.
    """
    try:
        return router.each(texts, rule)
    except NothingKnownError as error:
        raise ServiceError("unroutable", str(error)) from None


def class_rows(flat_td: npt.NDArray[np.float32], class_texts: Sequence[Sequence[str]]) -> npt.NDArray[np.float32]:
    """One unit row per class from an expert's embeddings of all texts, as `zero_shot_classifier` computes it."""
    if all(len(texts) == 1 for texts in class_texts):
        return flat_td
    ends = np.cumsum([len(texts) for texts in class_texts])
    return np.stack([mean_direction(rows_td) for rows_td in np.split(flat_td, ends[:-1])])
