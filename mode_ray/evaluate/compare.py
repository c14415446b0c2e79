"""Every model, routing rule and control on every task, from the stored cosines; pure arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mode_ray.config import RoutingConfig, RoutingRule
from mode_ray.ensemble import ensemble_scores, per_query_scores
from mode_ray.evaluate.measurements import TaskCosines
from mode_ray.evaluate.metrics import measure
from mode_ray.evaluate.tasks import Task
from mode_ray.routing import RoutingWeights, per_query_weights, routing_weights

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class TaskResults:
    """All results of one task.

    Attributes:
        single: Metrics of every model alone, by its name.
        rules: Metrics of the experts' ensemble, by routing rule.
        random: Metrics of the uniform ensemble of the random control's models, or None without them.
        weights: Routing weights by rule.
    """

    single: Mapping[str, Metrics]
    rules: Mapping[str, Metrics]
    random: Metrics | None
    weights: Mapping[str, RoutingWeights]


def compare(
    task: Task,
    measured: TaskCosines,
    experts: Sequence[str],
    random_models: Sequence[str],
    centers_md: np.ndarray,
    group_m: np.ndarray,
    routing: RoutingConfig,
    rules: Sequence[RoutingRule],
) -> TaskResults:
    """Results of one task.

    Args:
        task: The task.
        measured: Its cosines.
        experts: Names of the experts' models, in order of their ids.
        random_models: Names of the random control's models; may be empty.
        centers_md: Fine centers.
        group_m: Expert of every fine center.
        routing: Parameters of the rules.
        rules: Which rules.
    """
    cosines_cil = np.stack([measured.cosines[name] for name in experts])
    texts_ld = measured.routing_texts_ld
    by_rule: dict[str, Metrics] = {}
    weights: dict[str, RoutingWeights] = {}
    for rule in rules:
        weights[rule] = routing_weights(texts_ld, centers_md, group_m, routing, rule, n_experts=len(experts))
        # Retrieving images, every query is a task of its own; retrieving texts, all of them are the task.
        per_query_il = None
        if task.kind == "retrieval":
            weights_lc = per_query_weights(texts_ld, centers_md, group_m, routing, rule, n_experts=len(experts))
            per_query_il = per_query_scores(cosines_cil, weights_lc)
        scores_il = ensemble_scores(cosines_cil, weights[rule].weights_c)
        by_rule[rule] = task_metrics(task, measured, scores_il, per_query_il)
    single = {name: task_metrics(task, measured, cosines_il) for name, cosines_il in measured.cosines.items()}
    random = None
    if random_models:
        equal = np.full(len(random_models), 1 / len(random_models))
        stacked = np.stack([measured.cosines[name] for name in random_models])
        random = task_metrics(task, measured, ensemble_scores(stacked, equal))
    return TaskResults(single, by_rule, random, weights)


def task_metrics(
    task: Task, measured: TaskCosines, scores_il: np.ndarray, per_query_il: np.ndarray | None = None
) -> Metrics:
    """Metrics of one scoring.

    Args:
        task: Its kind decides the metrics.
        measured: Labels and texts.
        scores_il: Images by texts.
        per_query_il: Scores for retrieving images, where they differ.
    """
    return measure(measured.scored(task.kind, scores_il, per_query_il))
