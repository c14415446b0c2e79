"""Results of every model, routing rule, pruning step and control on a task, computed from the stored cosines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from mode_ray.config.evaluate import RoutingConfig, RoutingRule
from mode_ray.evaluate.measure.measurements import TaskCosines
from mode_ray.evaluate.metrics.curves import Floats
from mode_ray.evaluate.metrics.intervals import task_draws
from mode_ray.evaluate.metrics.metric_table import METRICS
from mode_ray.evaluate.metrics.score import measure
from mode_ray.evaluate.metrics.scored import Scored
from mode_ray.evaluate.tasks.task import Task
from mode_ray.routing.mix import ensemble_scores, keep_share, keep_top, per_query_scores, without_experts
from mode_ray.routing.weights import (
    ExpertCenters,
    RoutingWeights,
    normalised_entropy,
    per_query_weights,
    routing_weights,
)
from mode_ray.train.plan import DENSE_RUNS

PRUNING_SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)
_ALL_COUNTS_UP_TO = 8

Metrics = Mapping[str, float]
Keep = Literal["top", "share"]


@dataclass(frozen=True, kw_only=True)
class PrunedResult:
    """The result of the ensemble with fewer experts.

    Attributes:
        keep: `top`: the experts with the largest weights. `share`: the fewest that cover a share of the weight.
        value: The number of experts, or the share.
        experts_run: Number of experts with a weight above 0; the mean over queries if each query has its own weights.
        metrics: The metrics.
    """

    keep: Keep
    value: float
    experts_run: float
    metrics: Metrics


@dataclass(frozen=True)
class TaskResults:
    """All results of one task.

    Attributes:
        single: Metrics of every single model, by name.
        rules: Metrics of the ensemble, by routing rule.
        controls: Metrics of the uniform ensemble of each control with several models, by name.
        weights: Routing weights by rule.
        chance: The main metric of random scores.
        pruned: The ensemble with fewer experts under the rule of the config.
        draws: The main metric on resamples of the images, by name of the rule, control or dense model.
    """

    single: Mapping[str, Metrics]
    rules: Mapping[str, Metrics]
    controls: Mapping[str, Metrics]
    weights: Mapping[str, RoutingWeights]
    chance: float
    pruned: Sequence[PrunedResult] = ()
    draws: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Router:
    """Computes the routing weights of the texts of a task.

    Attributes:
        centers: The fine centers with their experts.
        config: Parameters of the rules.
        missing: Ids of experts that are left out. The weights of the others are scaled to sum to 1.
    """

    centers: ExpertCenters
    config: RoutingConfig
    missing: Sequence[int] = field(default=())

    def task_weights(self, texts_ld: np.ndarray, rule: RoutingRule) -> RoutingWeights:
        """Weights of the whole task; see `routing_weights`. `fine_weight_m` includes missing experts."""
        weights = routing_weights(texts_ld, self.centers, self.config, rule)
        if not self.missing:
            return weights
        weights_c = without_experts(weights.weights_c, self.missing).astype(np.float64)
        return replace(weights, weights_c=weights_c, normalised_entropy=normalised_entropy(weights_c))

    def query_weights(self, texts_ld: np.ndarray, rule: RoutingRule) -> np.ndarray:
        """Weights of every text as a separate task, [texts, experts]; see `per_query_weights`."""
        weights_lc = per_query_weights(texts_ld, self.centers, self.config, rule)
        return np.asarray(without_experts(weights_lc, self.missing)) if self.missing else weights_lc


def compare(
    task: Task,
    measured: TaskCosines,
    experts: Sequence[str],
    controls: Mapping[str, Sequence[str]],
    router: Router,
    rules: Sequence[RoutingRule],
) -> TaskResults:
    """Results of one task.

    Args:
        task: The task.
        measured: Its cosines, without missing experts.
        experts: Names of the expert models in order of their ids, including missing ones.
        controls: Names of the models of each control with several models.
        router: Computes the weights.
        rules: The routing rules.
    """
    missing = set(router.missing)
    cosines = [None if number in missing else measured.cosines[name] for number, name in enumerate(experts)]
    ensemble = _Ensemble(task, measured, cosines)
    texts_ld = measured.routing_texts_ld
    by_rule: dict[str, Metrics] = {}
    draws: dict[str, Floats] = {}
    weights: dict[str, RoutingWeights] = {}

    def drawn(name: str, scored: Scored) -> Metrics:
        draws[name] = task_draws(scored, task.name, task.metric)
        return measure(scored)

    pruned: list[PrunedResult] = []
    for rule in rules:
        weights[rule] = router.task_weights(texts_ld, rule)
        # For image retrieval every query is a separate task. For text retrieval all texts together are the task.
        weights_lc = router.query_weights(texts_ld, rule) if task.kind == "retrieval" else None
        by_rule[rule] = drawn(rule, ensemble.scored(weights[rule].weights_c, weights_lc))
        if rule == router.config.rule:
            pruned = _prune(ensemble, weights[rule].weights_c, weights_lc)
    single = {}
    for name, cosines_il in measured.cosines.items():
        scored = measured.scored(task, cosines_il)
        single[name] = drawn(name, scored) if name in DENSE_RUNS.values() else measure(scored)
    mixed = {
        control: drawn(control, measured.scored(task, _uniform_scores(measured, names)))
        for control, names in controls.items()
    }
    some = measured.scored(task, next(iter(measured.cosines.values())))
    chance = METRICS[task.kind][task.metric].chance(some)
    return TaskResults(single, by_rule, mixed, weights, chance, pruned, draws)


def _uniform_scores(measured: TaskCosines, models: Sequence[str]) -> np.ndarray:
    equal_c = np.full(len(models), 1 / len(models))
    return np.asarray(ensemble_scores([measured.cosines[name] for name in models], equal_c))


def pruning_counts(n: int) -> list[int]:
    """The numbers of experts in the pruning curve: all up to 8, then powers of 2, and n."""
    few = list(range(1, min(n, _ALL_COUNTS_UP_TO) + 1))
    powers = [1 << power for power in range(4, n.bit_length()) if 1 << power < n]
    return [*few, *powers, *([n] if n > _ALL_COUNTS_UP_TO else [])]


@dataclass(frozen=True)
class _Ensemble:
    """The cosines of the experts on a task; None for a left-out expert, whose weight is 0."""

    task: Task
    measured: TaskCosines
    cosines: Sequence[np.ndarray | None]

    def scored(self, weights_c: np.ndarray, weights_lc: np.ndarray | None = None) -> Scored:
        """Scores with the weights of the task and, for image retrieval, with those of every text."""
        present = [number for number, cosines_il in enumerate(self.cosines) if cosines_il is not None]
        cosines = [cosines_il for cosines_il in self.cosines if cosines_il is not None]
        per_query_il = None if weights_lc is None else per_query_scores(cosines, weights_lc[:, present])
        return self.measured.scored(self.task, ensemble_scores(cosines, weights_c[present]), per_query_il)


def _prune(ensemble: _Ensemble, weights_c: np.ndarray, weights_lc: np.ndarray | None) -> list[PrunedResult]:
    """The pruning curve. The weights of every text are pruned separately."""
    steps: list[tuple[Keep, float, Callable[[np.ndarray], np.ndarray]]] = []
    steps += [("top", float(count), partial(keep_top, experts=count)) for count in pruning_counts(len(weights_c))]
    steps += [("share", share, partial(keep_share, share=share)) for share in PRUNING_SHARES]
    results = []
    for keep, value, prune in steps:
        task_c, query_lc = prune(weights_c), None if weights_lc is None else prune(weights_lc)
        run = task_c if query_lc is None else query_lc
        results.append(
            PrunedResult(
                keep=keep,
                value=value,
                experts_run=float((run > 0.0).sum(axis=-1).mean()),
                metrics=measure(ensemble.scored(task_c, query_lc)),
            )
        )
    return results
