"""What a model card states, read from a finished run's own records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mode_ray.atlas.summary import read_summary, terms_by_expert
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.evaluate.report.schema import ModelRow, ReportData
from mode_ray.evaluate.stage import load_report
from mode_ray.run_directory import METRICS_FILE, REPORT_JSON, stage_directories
from mode_ray.stages.manifest import Manifest, read_manifest
from mode_ray.storage import Location
from mode_ray.train.plan import DENSE, SEED, expert_name
from mode_ray.train.runs.trial import read_metrics


@dataclass(frozen=True, kw_only=True)
class ExpertFacts:
    """One expert.

    Attributes:
        number: Its id.
        folder: The folder of its model.
        pairs: Pairs it was trained on, those of other clusters included.
        centers: Fine centers it owns.
        share: Of all experts' pairs.
        samples: Samples it saw itself, after the seed.
        terms: Words that are typical of its captions; none where no atlas was made.
    """

    number: int
    folder: Location
    pairs: int
    centers: int
    share: float
    samples: int
    terms: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Results in one task's main metric, as fractions; None where a model was not evaluated.

    Attributes:
        task: Its name.
        metric: The main metric.
        ensemble: All experts under the config's routing rule.
        dense: The dense baseline.
        experts: Every expert alone.
    """

    task: str
    metric: str
    ensemble: float | None
    dense: float | None
    experts: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of a finished run.

    Attributes:
        config: Its config.
        clustering: Its clustering.
        experts: In order of their ids.
        shards: Input shards (work units).
        captions: Captions found in them.
        pairs: Captions assigned, each with its image.
        refused: Captions left out, by reason.
        seed_samples: Samples that the seed saw; 0 without one.
        dense_samples: Samples that the dense baseline saw, or None without one.
        results: By task; empty before the evaluation.
        versions: Of the packages that trained.
    """

    config: RunConfig
    clustering: Clustering
    experts: Sequence[ExpertFacts]
    shards: int
    captions: int
    pairs: int
    refused: Mapping[str, int]
    seed_samples: int
    dense_samples: int | None
    results: Sequence[TaskResult]
    versions: Mapping[str, str]

    @property
    def total_samples(self) -> int:
        """Samples of the seed and all experts together."""
        return self.seed_samples + sum(expert.samples for expert in self.experts)


def collect_facts(config: RunConfig) -> RunFacts:
    """Read what the stages of a run wrote.

    Raises:
        UsageError: The train stage is not done, or was done for another number of experts.
        DataError: A file of the run is missing or damaged.
    """
    directories = stage_directories(config.directory)
    trained = _finished_training(config, directories["train"])
    assigned = read_manifest(directories["assign"])
    clustering = Clustering.load(directories["cluster"])
    n = config.train.experts
    names = [expert_name(n, expert) for expert in range(n)]
    metrics = {name: read_metrics(directories["train"] / name) for name in names}
    all_pairs = sum(int(metrics[name]["pairs"]) for name in names)
    group_m = clustering.experts_of(n)
    terms = terms_by_expert(read_summary(directories["cluster"], len(group_m)), n)
    return RunFacts(
        config=config,
        clustering=clustering,
        experts=[
            ExpertFacts(
                number=number,
                folder=directories["train"] / name,
                pairs=int(metrics[name]["pairs"]),
                centers=int((group_m == number).sum()),
                share=int(metrics[name]["pairs"]) / max(1, all_pairs),
                samples=int(metrics[name]["samples"]),
                terms=terms[number],
            )
            for number, name in enumerate(names)
        ],
        shards=0 if assigned is None else assigned.units,
        captions=0 if assigned is None else assigned.rows_in,
        pairs=0 if assigned is None else assigned.rows_out,
        refused={} if assigned is None else assigned.refused,
        seed_samples=_samples(directories["train"] / SEED) or 0,
        dense_samples=_samples(directories["train"] / DENSE),
        results=_results(directories["evaluate"], n),
        versions=trained.versions,
    )


def _finished_training(config: RunConfig, experts: Location) -> Manifest:
    manifest = read_manifest(experts)
    if manifest is None:
        raise UsageError(f"{experts}: the train stage is not done: run `mode-ray train` first")
    trained = manifest.fields.get("train.experts")
    if trained != config.train.experts:
        raise UsageError(f"train.experts={config.train.experts}, but this run has trained {trained} experts")
    return manifest


def _samples(folder: Location) -> int | None:
    return int(read_metrics(folder)["samples"]) if (folder / METRICS_FILE).exists() else None


def _results(evaluation: Location, n: int) -> list[TaskResult]:
    if not (evaluation / REPORT_JSON).exists():
        return []
    report = load_report(evaluation)
    alone = [model for model in report["models"] if model["kind"] == "single"]
    rows = []
    for task in report["tasks"]:
        name, metric = task["name"], task["metric"]
        rows.append(
            TaskResult(
                task=name,
                metric=metric,
                ensemble=_metric(_ensemble(report), name, metric),
                dense=_metric(next((m for m in report["models"] if m["kind"] == "dense"), None), name, metric),
                experts=[_metric(model, name, metric) for model in alone] if len(alone) == n else [None] * n,
            )
        )
    return rows


def _ensemble(report: ReportData) -> ModelRow | None:
    """The ensemble under the rule that the config chose before the results."""
    rows = (model for model in report["models"] if model["kind"] == "mode" and model.get("rule") == report["rule"])
    return next(rows, None)


def _metric(model: ModelRow | None, task: str, metric: str) -> float | None:
    return None if model is None else model["metrics"].get(task, {}).get(metric)
