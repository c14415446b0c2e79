"""The fields of report.json and their validation.

Metrics are fractions between 0 and 1; samples are image-text pairs seen in training.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mode_ray.errors import DataError

ModelKind = Literal[
    "dense",
    "dense_equal_total",
    "wide",
    "clustered",
    "mode",
    "best_expert",
    "oracle",
    "single",
    "full",
    "random",
    "seed",
]
# Names in reports of earlier versions.
_RENAMED_KINDS = {"best_single": "oracle"}


class StageRow(TypedDict):
    """One stage of the run, from its manifest."""

    name: str
    seconds: float
    rows_in: NotRequired[int]
    rows_out: NotRequired[int]
    refused: NotRequired[dict[str, int]]  # captions left out, by reason
    quarantined: NotRequired[dict[str, str]]  # reason of every work unit that was left out, by source


class TaskRow(TypedDict):
    """One evaluation task."""

    name: str
    metric: str  # the main metric: a key of every model's metrics[name]
    items: int  # test items, for the sampling error
    texts: NotRequired[int]  # classes or captions that routing saw
    chance: NotRequired[float]  # the main metric of random scores


class ModelRow(TypedDict):
    """One row of the results: a model, or an ensemble under one routing rule.

    `best_expert` is the expert with the best mean over the tasks. `oracle` is the best expert of each task. Both are
    chosen by test labels.
    """

    name: str
    kind: ModelKind
    rule: NotRequired[str | None]
    metrics: dict[str, dict[str, float]]  # by task, then by metric
    samples_seen: NotRequired[int | None]  # after the seed model; all experts of an ensemble together
    samples_total: NotRequired[int | None]  # of all models behind this row, including the seed model


class NearCluster(TypedDict):
    """A fine cluster near a text of a task, with a caption near its center."""

    fine: int
    expert: int
    squared_distance: float
    caption: NotRequired[str]


class NearestRow(TypedDict):
    """A text of a task and the fine clusters nearest to it, nearest first."""

    text: str
    clusters: list[NearCluster]


class WhyRow(TypedDict):
    """A fine cluster that gave weight to its expert."""

    fine: int
    expert: int
    weight: float  # as a share of the weight of the task
    caption: NotRequired[str]  # near its center


class PruningRow(TypedDict):
    """One task with fewer experts under the rule of the config."""

    task: str
    keep: Literal["top", "share"]
    value: float  # the number of experts, or the share of the weight that they cover
    experts_run: float  # the mean over queries if each is routed separately
    score: float  # in the main metric


class DifferenceRow(TypedDict):
    """The score of a row minus that of the dense model, with its 95 % interval on the same resampled images."""

    change: float
    low: float
    high: float


class IntervalRow(TypedDict):
    """The 95 % interval of the main metric of a row, from resampling of the test images."""

    model: str  # a name in models
    task: str | None  # None: the mean over tasks
    score: float
    low: float
    high: float
    against_dense: NotRequired[DifferenceRow]


class RoutingRow(TypedDict):
    """The weights of one task under one rule."""

    task: str
    rule: str
    weights: list[float]
    normalised_entropy: float
    why: NotRequired[list[WhyRow]]  # the fine clusters that gave most of the weight, largest first


class ExpertRow(TypedDict):
    """One data expert; its number is its index in the list."""

    rows: int
    share: float  # of all captions
    spread: float  # mean squared distance of its captions to their mass-weighted centroid
    samples_seen: NotRequired[int | None]
    captions: NotRequired[list[str]]


class FineClusterRow(TypedDict):
    """One fine cluster, with captions near its center."""

    fine: int
    expert: int
    rows: int
    captions: NotRequired[list[str]]


class LossRow(TypedDict):
    """One loss curve; `samples` count from the start of the whole schedule."""

    name: str
    samples: list[float]
    loss: list[float | None]
    kind: NotRequired[ModelKind]  # `dense` is drawn dashed
    expert: NotRequired[int | None]  # for a data expert's curve, its number


class ReportData(TypedDict):
    """The data of the report. The page leaves out missing optional fields."""

    title: str
    run: str
    created: str  # date and time as shown
    rule: str  # the routing rule of the config, which the verdict compares
    tasks: list[TaskRow]
    models: list[ModelRow]
    groups: NotRequired[dict[str, dict[str, float | None]]]  # means over named groups of tasks, by group and model
    machine: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    stages: NotRequired[list[StageRow]]
    routing: NotRequired[list[RoutingRow]]
    calibration: NotRequired[str]  # how the temperature of the rule calibrated was fitted
    pruning: NotRequired[list[PruningRow]]
    intervals: NotRequired[list[IntervalRow]]
    linear_probes: NotRequired[dict[str, dict[str, float]]]  # main metric by name of the features, then by task
    missing_experts: NotRequired[list[int]]  # left out by the config
    nearest: NotRequired[dict[str, list[NearestRow]]]  # by task
    experts: NotRequired[list[ExpertRow]]
    fine_clusters: NotRequired[list[FineClusterRow]]
    losses: NotRequired[list[LossRow]]
    licences: NotRequired[str]  # of the data shown


def _with_kinds_of_now(models: object) -> object:
    if not isinstance(models, list):
        return models
    for_now = []
    for model in models:
        kind = model.get("kind") if isinstance(model, dict) else None
        for_now.append({**model, "kind": _RENAMED_KINDS[kind]} if kind in tuple(_RENAMED_KINDS) else model)
    return for_now


def check_report(report: Mapping[str, Any]) -> ReportData:
    """The report as its typed dict, without unknown keys.

    Raises:
        DataError: A field is missing, has a wrong type, or names a task that is not in `tasks`.
    """
    try:
        data = TypeAdapter(ReportData).validate_python({**report, "models": _with_kinds_of_now(report.get("models"))})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"report data: {field}: {first['msg'].lower()}") from None
    names = {task["name"] for task in data["tasks"]}
    if ragged := [row["name"] for row in data.get("losses", []) if len(row["samples"]) != len(row["loss"])]:
        raise DataError(f"report data: losses, {ragged[0]}: samples and loss differ in length")
    named = [(f"models, {model['name']}", set(model["metrics"])) for model in data["models"]]
    named += [("routing", {row["task"] for row in data.get("routing", [])})]
    named += [("pruning", {row["task"] for row in data.get("pruning", [])})]
    named += [("intervals", {row["task"] for row in data.get("intervals", []) if row["task"] is not None})]
    named += [(f"linear_probes, {name}", set(tasks)) for name, tasks in data.get("linear_probes", {}).items()]
    for field, tasks in named:
        if unknown := sorted(tasks - names):
            raise DataError(f"report data: {field}: task {unknown[0]!r} is not one of tasks")
    return data
