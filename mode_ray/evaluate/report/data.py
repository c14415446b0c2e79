"""Build the data of the report from manifests, measurements and source pairs."""

import math
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mode_ray.assign.counts import fine_counts
from mode_ray.evaluate.measure.measurements import TaskCosines
from mode_ray.evaluate.metrics.intervals import interval_rows
from mode_ray.evaluate.metrics.score import group_means
from mode_ray.evaluate.report.schema import (
    ExpertRow,
    FineClusterRow,
    IntervalRow,
    LossRow,
    ModelKind,
    ModelRow,
    NearCluster,
    NearestRow,
    PruningRow,
    ReportData,
    RoutingRow,
    StageRow,
    TaskRow,
    WhyRow,
)
from mode_ray.evaluate.report.sources import ReportSources
from mode_ray.evaluate.tasks.task import Task
from mode_ray.routing.weights import RoutingWeights, nearest_centers, top_centers
from mode_ray.stages.manifest import read_manifest
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.train.plan import DENSE, DENSE_RUNS, expert_name
from mode_ray.train.runs.trial import read_metrics
from mode_ray.util.versions import package_versions

MetricsByTask = dict[str, dict[str, float]]
_CONTROL_TITLES: dict[Literal["full", "random"], str] = {"full": "Full", "random": "Random"}
_DENSE_TITLES: dict[Literal["dense", "dense_equal_total", "wide", "clustered"], str] = {
    "dense": "dense",
    "dense_equal_total": "dense, equal total",
    "wide": "dense, as wide as all experts",
    "clustered": "dense, batches of one cluster",
}
_CAPTIONS_PER_EXPERT = 8
_CAPTIONS_PER_CLUSTER = 3
_NEAREST_PER_TEXT = 3
_TEXTS_SHOWN = 40
_CENTERS_PER_TASK = 8
_LICENCE_FILES = ("ATTRIBUTION.txt", "LICENCE.txt", "LICENSE.txt")


def report_data(sources: ReportSources) -> ReportData:
    """The data of the report."""
    config = sources.config
    n = config.train.experts
    models = _models(sources)
    return ReportData(
        title=f"MoDE-{n}: {len(sources.clustering.centers_md)} fine clusters, {n} experts",
        run=config.directory.uri,
        created=time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        rule=config.routing.rule,
        machine=f"{platform.processor() or platform.machine()}, {platform.system()}",
        versions=package_versions(),
        stages=_stages(sources),
        tasks=[_task_row(sources, task) for task in sources.tasks],
        models=models,
        groups=_groups(sources.tasks, models),
        routing=[
            _routing_row(sources, task, rule, weights)
            for task, results in sources.results.items()
            for rule, weights in results.weights.items()
        ],
        calibration=sources.calibration.note,
        pruning=_pruning(sources),
        intervals=_intervals(sources, models),
        linear_probes=_linear_probes(sources),
        missing_experts=list(config.evaluate.leave_out_experts),
        nearest={task.name: _nearest(sources, sources.measured[task.name]) for task in sources.tasks},
        experts=_experts(sources),
        fine_clusters=_fine_clusters(sources),
        losses=_losses(sources),
        licences=_licences(sources.work_units),
    )


def _stages(sources: ReportSources) -> list[StageRow]:
    rows = []
    for name, directory in sources.directories.items():
        manifest = read_manifest(directory)
        if manifest is not None:
            rows.append(
                StageRow(
                    name=name,
                    seconds=manifest.seconds,
                    rows_in=manifest.rows_in,
                    rows_out=manifest.rows_out,
                    refused=dict(manifest.refused),
                    quarantined=dict(manifest.quarantined),
                )
            )
    return rows


def _task_row(sources: ReportSources, task: Task) -> TaskRow:
    summary = sources.measured[task.name].summary
    return TaskRow(
        name=task.name,
        metric=task.metric,
        items=summary.images,
        texts=len(summary.texts),
        chance=sources.results[task.name].chance,
    )


def _models(sources: ReportSources) -> list[ModelRow]:
    """The dense models, the ensemble by rule, the best and all single experts, and the ensembles of the controls."""
    n = sources.config.train.experts
    samples = {trial.name: trial.samples for trial in sources.trials}
    behind = {trial.name: samples[trial.parent] if trial.parent else 0 for trial in sources.trials}
    experts = [expert_name(n, expert) for expert in sources.experts]
    rows = []

    def add(
        name: str, kind: ModelKind, models: Sequence[str], metrics: MetricsByTask, rule: str | None = None
    ) -> None:
        own = sum(samples[model] for model in models)
        total = own + behind[models[0]]
        rows.append(ModelRow(name=name, kind=kind, rule=rule, metrics=metrics, samples_seen=own, samples_total=total))

    def single(name: str) -> MetricsByTask:
        return {task: dict(results.single[name]) for task, results in sources.results.items()}

    for dense, title in _DENSE_TITLES.items():
        name = DENSE_RUNS[dense]
        if name in samples:
            add(title, dense, [name], single(name))
    for rule in sources.config.evaluate.rules:
        by_task = {task: dict(results.rules[rule]) for task, results in sources.results.items()}
        add(f"MoDE-{n} ({rule})", "mode", experts, by_task, rule)
    alone = {name: single(name) for name in experts}
    best = max(experts, key=lambda name: _mean(sources.tasks, alone[name]))
    add(f"best single expert ({sources.experts[experts.index(best)]})", "best_expert", experts, alone[best])
    oracle = {
        task.name: max((alone[name][task.name] for name in experts), key=lambda metrics: metrics[task.metric])
        for task in sources.tasks
    }
    add("oracle: best expert per task", "oracle", experts, oracle)
    for expert, name in zip(sources.experts, experts, strict=True):
        add(f"expert {expert} alone", "single", [name], alone[name])
    for kind, title in _CONTROL_TITLES.items():
        models = [trial.name for trial in sources.trials if trial.role == kind]
        if models:
            by_task = {task: dict(results.controls[kind]) for task, results in sources.results.items()}
            add(f"{title}-{n} (uniform)", kind, models, by_task)
    return rows


def _mean(tasks: Sequence[Task], metrics: MetricsByTask) -> float:
    """Mean of the main metric over the tasks on which it is defined."""
    values = [metrics[task.name][task.metric] for task in tasks]
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else -math.inf


def _routing_row(sources: ReportSources, task: str, rule: str, weights: RoutingWeights) -> RoutingRow:
    """The weights of a task, and for the rule of the config the fine centers with the largest weights."""
    row = RoutingRow(
        task=task, rule=rule, weights=weights.weights_c.tolist(), normalised_entropy=weights.normalised_entropy
    )
    if rule == sources.config.routing.rule:
        row["why"] = [
            WhyRow(
                fine=fine,
                expert=int(sources.group_m[fine]),
                weight=weight,
                caption=_nearest_caption(sources, fine),
            )
            for fine, weight in top_centers(weights, _CENTERS_PER_TASK)
        ]
    return row


def _nearest_caption(sources: ReportSources, fine: int) -> str:
    """The caption nearest to a center, or an empty text if it is unknown."""
    return next(iter(sources.captions[fine]), "")


def _pruning(sources: ReportSources) -> list[PruningRow]:
    return [
        PruningRow(
            task=task.name,
            keep=pruned.keep,
            value=pruned.value,
            experts_run=pruned.experts_run,
            score=pruned.metrics[task.metric],
        )
        for task in sources.tasks
        for pruned in sources.results[task.name].pruned
    ]


def _intervals(sources: ReportSources, models: Sequence[ModelRow]) -> list[IntervalRow]:
    """The intervals of the resampled lines, with their names in the main table."""
    drawn = {}
    for model in models:
        kind = model["kind"]
        keys: dict[str, str | None] = {"mode": model.get("rule"), "full": kind, "random": kind}
        keys |= {str(control): name for control, name in DENSE_RUNS.items()}
        key = keys.get(kind)
        if key is not None:
            drawn[model["name"]] = {task.name: sources.results[task.name].draws[key] for task in sources.tasks}
    scores = {
        model["name"]: {task.name: model["metrics"][task.name][task.metric] for task in sources.tasks}
        for model in models
    }
    return interval_rows(scores, drawn, next((model["name"] for model in models if model["kind"] == "dense"), None))


def _linear_probes(sources: ReportSources) -> dict[str, dict[str, float]]:
    """Main metric of the linear probes on the features of each model, and on those of all members of an ensemble."""
    n = sources.config.train.experts
    names = {DENSE: "dense", **{expert_name(n, expert): f"expert {expert} alone" for expert in range(n)}}
    names |= {f"n{n}": "experts side by side"}
    names |= {f"{kind}-n{n}": f"{title} experts side by side" for kind, title in _CONTROL_TITLES.items()}
    rows: dict[str, dict[str, float]] = {}
    for task in sources.tasks:
        found = _probes_of_present(sources, task)
        for model in [*(name for name in names if name in found), *(name for name in found if name not in names)]:
            if task.metric in found[model]:
                rows.setdefault(names.get(model, model), {})[task.name] = found[model][task.metric]
    return rows


def _probes_of_present(sources: ReportSources, task: Task) -> dict[str, Mapping[str, float]]:
    """The probes without experts that were left out after the measurement, and without ensembles that include them."""
    n, summary = sources.config.train.experts, sources.measured[task.name].summary
    gone = {expert_name(n, expert) for expert in range(n)} - {expert_name(n, expert) for expert in sources.experts}
    stale = {*gone, f"n{n}"} if gone & set(summary.models) else set()
    return {model: metrics for model, metrics in summary.linear_probe.items() if model not in stale}


def _groups(tasks: Sequence[Task], models: Sequence[ModelRow]) -> dict[str, dict[str, float | None]]:
    """Means of the main metric over the tasks of each named group, by group and model."""
    means: dict[str, dict[str, float | None]] = {}
    for model in models:
        values = {task.name: model["metrics"].get(task.name, {}).get(task.metric) for task in tasks}
        for group, mean in group_means(values, {task.name: task.groups for task in tasks}).items():
            means.setdefault(group, {})[model["name"]] = mean
    return means


def _nearest(sources: ReportSources, measured: TaskCosines) -> list[NearestRow]:
    """The fine clusters nearest to the first texts of a task."""
    texts = measured.summary.texts[:_TEXTS_SHOWN]
    fine_lk, squared_lk = nearest_centers(
        measured.routing_texts_ld[: len(texts)], sources.clustering.centers_md, _NEAREST_PER_TEXT
    )

    def near(fine: int, squared: float) -> NearCluster:
        caption, expert = _nearest_caption(sources, fine), int(sources.group_m[fine])
        return NearCluster(fine=fine, expert=expert, squared_distance=squared, caption=caption)

    return [
        NearestRow(text=text, clusters=list(map(near, fine_k.tolist(), squared_k.tolist())))
        for text, fine_k, squared_k in zip(texts, fine_lk, squared_lk, strict=True)
    ]


def _experts(sources: ReportSources) -> list[ExpertRow]:
    n = sources.config.train.experts
    samples = {trial.name: trial.samples for trial in sources.trials}
    spread_n = sources.clustering.spread(n)
    total = max(1, int(sources.pairs_n.sum()))
    rows = []
    for expert in range(n):
        own = [fine for fine in np.flatnonzero(sources.group_m == expert).tolist() if sources.captions[fine]]
        chosen = [
            own[place] for place in np.linspace(0, len(own) - 1, min(_CAPTIONS_PER_EXPERT, len(own))).astype(int)
        ]
        rows.append(
            ExpertRow(
                rows=int(sources.pairs_n[expert]),
                share=float(sources.pairs_n[expert] / total),
                spread=float(spread_n[expert]),
                samples_seen=samples.get(expert_name(n, expert)),
                captions=[sources.captions[fine][0] for fine in chosen],
            )
        )
    return rows


def _fine_clusters(sources: ReportSources) -> list[FineClusterRow]:
    counts_m = fine_counts(sources.directories["assign"], sources.work_units, len(sources.group_m))
    return [
        FineClusterRow(
            fine=fine,
            expert=int(sources.group_m[fine]),
            rows=int(rows),
            captions=list(sources.captions[fine][:_CAPTIONS_PER_CLUSTER]),
        )
        for fine, rows in enumerate(counts_m.tolist())
    ]


def _losses(sources: ReportSources) -> list[LossRow]:
    """Loss curves on one axis. Those of the experts begin where the one of the seed ends."""
    samples = {trial.name: trial.samples for trial in sources.trials}
    rows = []
    for trial in sources.trials:
        history = read_metrics(sources.directories["train"] / trial.name)["history"]
        before = samples[trial.parent] if trial.parent else 0
        rows.append(
            LossRow(
                name=trial.name,
                samples=[before + point["samples"] for point in history],
                loss=[point["loss"] for point in history],
                kind="single" if trial.role == "expert" else trial.role,
                expert=trial.members.expert if trial.role == "expert" else None,
            )
        )
    return rows


def _licences(work_units: Sequence[WorkUnit]) -> str:
    """The licence text stored beside the data, if there is one."""
    folder = work_units[0].location.parent
    for place in (folder, folder.parent):
        for name in _LICENCE_FILES:
            if (place / name).exists():
                return " ".join((place / name).read_text().split())
    return ""
