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
from mode_ray.serve.service.turns import Rows

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
        truncated: Classes with a text that is longer than the context of the experts, which ignore its end.
    """

    definition: TaskDefinition
    weights_c: Floats
    entropy: float
    clusters: Sequence[NearestCluster]
    unknown: Sequence[str]
    truncated: Sequence[str]


def route(router: Router, definition: TaskDefinition, flat_td: Rows, cut: Sequence[bool]) -> RoutedTask:
    """The weights of a task, as the evaluation computes them.

    Args:
        router: The router.
        definition: The task.
        flat_td: The caption encoder's embeddings of the texts of all classes.
        cut: For each of these texts, whether it is longer than the context of the experts.

    Raises:
        ServiceError: The caption encoder knows no word of any class.
    """
    class_texts = definition.class_texts()
    try:
        routed = router.classes(class_texts, definition.rule, flat_td)
    except NothingKnownError as error:
        raise ServiceError("unroutable", str(error)) from None
    per_class = len(class_texts[0])
    names, weights, known = definition.names, routed.weights, set(routed.known)
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
        unknown=[name for position, name in enumerate(names) if position not in known],
        truncated=[name for name, cut_t in zip(names, np.reshape(cut, (-1, per_class)), strict=True) if cut_t.any()],
    )


def weights_of_each(router: Router, texts: Sequence[str], rule: RoutingRule, texts_ld: Rows) -> Floats:
    """Weights of every text as a task of its own, [texts, experts]; see `Router.each`.

    Raises:
        ServiceError: The caption encoder knows no word of any text.
    """
    try:
        return router.each(texts, rule, texts_ld)
    except NothingKnownError as error:
        raise ServiceError("unroutable", str(error)) from None


def class_rows(class_texts: Sequence[Sequence[str]], flat_td: Rows) -> Rows:
    """One unit row per class from an expert's embeddings of all texts, as `zero_shot_classifier` computes it."""
    if all(len(texts) == 1 for texts in class_texts):
        return flat_td
    ends = np.cumsum([len(texts) for texts in class_texts])
    return np.stack([mean_direction(rows_td) for rows_td in np.split(flat_td, ends[:-1])])
