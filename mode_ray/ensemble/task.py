"""A task that was routed once: its classes, the weights of the experts, and the reasons for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from string import Formatter
from typing import Any

import numpy as np
import numpy.typing as npt

from mode_ray.errors import UsageError
from mode_ray.routing.weights import RoutingWeights, top_centers

Floats = npt.NDArray[np.float64]
Template = str | Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class NearestCluster:
    """The fine cluster that a label is nearest to.

    Attributes:
        label: The label.
        fine: The fine cluster.
        expert: The expert that owns it.
        squared_distance: Squared distance of the label to the fine center.
    """

    label: str
    fine: int
    expert: int
    squared_distance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The labels of a task and the experts' weights for it; made by `Ensemble.task`.

    Attributes:
        labels: Class names, or texts.
        class_texts: For every label the texts it stands for: the label in every template.
        weights: p(c | task), float64 [n], sums to 1.
        entropy: Entropy of the weights over log n: 0 is one expert, 1 is uniform.
        rule: The routing rule.
        nearest: The nearest fine cluster of every label that the caption encoder knows a word of.
        unknown: Labels without such a word; they do not influence the weights.
    """

    labels: tuple[str, ...]
    class_texts: tuple[tuple[str, ...], ...]
    weights: Floats
    entropy: float
    rule: str
    nearest: tuple[NearestCluster, ...]
    unknown: tuple[str, ...]
    _routing: RoutingWeights = field(repr=False)
    _group_m: npt.NDArray[np.integer] = field(repr=False)
    _captions: Callable[[int], Sequence[str]] = field(repr=False)
    _encode: "Callable[[Task], Sequence[npt.NDArray[np.float32] | None]]" = field(repr=False)

    @cached_property
    def classifiers(self) -> Sequence[npt.NDArray[np.float32] | None]:
        """Every expert's zero-shot classifier, unit rows [labels, d]; None for an expert of weight 0.

        They are computed when they are first used, and kept.
        """
        return self._encode(self)

    def why(self, count: int = 5) -> list[dict[str, Any]]:
        """The fine clusters that gave most of the weight, largest first.

        Args:
            count: How many.

        Returns:
            For each its number `fine`, its `expert`, its `share` of the weight, and `captions` near its center (empty
            where no atlas was made). Nothing for the rule `uniform`.
        """
        return [
            {
                "fine": fine,
                "expert": int(self._group_m[fine]),
                "share": share,
                "captions": list(self._captions(fine)),
            }
            for fine, share in top_centers(self._routing, count)
        ]

    def __repr__(self) -> str:
        shown = ", ".join(f"{weight:.3f}" for weight in self.weights)
        return f"Task({len(self.labels)} labels, rule={self.rule}, weights=[{shown}], entropy={self.entropy:.3f})"


def class_texts_of(labels: Sequence[str], templates: Sequence[Template]) -> tuple[tuple[str, ...], ...]:
    """Every label in every template.

    Args:
        labels: Class names.
        templates: Texts with `{}`, `{c}` or `{label}` where the label belongs, or functions from label to text.

    Raises:
        UsageError: There is no label or template, a label is empty, or a template has no place for the label.
    """
    if isinstance(labels, str) or isinstance(templates, str):
        raise UsageError("labels and templates are lists of texts: write [text] for a single one")
    if not labels or not templates:
        raise UsageError("a task needs at least one label and one template")
    for position, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise UsageError(f"label {position} is empty or not a text: {label!r}")
    return tuple(tuple(_filled(template, label) for template in templates) for label in labels)


def _filled(template: Template, label: str) -> str:
    if callable(template):
        return template(label)
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UsageError(f"template {template!r}: {error}") from None
    if not fields or not set(fields) <= {"", "c", "label"}:
        raise UsageError(f"template {template!r}: write {{}} where the label belongs, as in 'a photo of a {{}}.'")
    # Replaced, not formatted: a format call would evaluate attributes and indices.
    for name in set(fields):
        template = template.replace(f"{{{name}}}", label)
    return template
