"""What the service found, as answers: JSON models, or bare numbers for those who ask for them."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from fastapi import Request, Response

from mode_ray.serve.http.schema import (
    ClassifyAnswer,
    ClassifyResult,
    ClustersAnswer,
    ClusterView,
    Embeddings,
    ExpertScores,
    ExpertWeight,
    NearestClusterView,
    Routing,
    ScoreAnswer,
    TaskAnswer,
)
from mode_ray.serve.service.ensemble_service import Embedded, Scores
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_routing import RoutedTask

CAPTIONS_SHOWN = 3
BINARY_TYPES = {"application/x-float32": "<f4", "application/x-float16": "<f2"}

Floats = npt.NDArray[np.floating]


def routing_view(task: RoutedTask, served: ServedRun, applied_c: Floats | None = None) -> Routing:
    """A task's weights; `applied_c` are those of an answer, by default all."""
    applied_c = task.weights_c if applied_c is None else applied_c
    return Routing(
        weights=[
            ExpertWeight(id=expert, weight=float(weight), used=bool(applied > 0.0), applied=float(applied))
            for expert, (weight, applied) in enumerate(zip(task.weights_c, applied_c, strict=True))
        ],
        entropy=task.entropy,
        rule=task.definition.rule,
        clusters=[
            NearestClusterView(
                text=cluster.text,
                fine=cluster.fine,
                expert=cluster.expert,
                squared_distance=cluster.squared_distance,
                captions=list(served.captions[cluster.fine][:CAPTIONS_SHOWN]),
            )
            for cluster in task.clusters
        ],
        unknown=list(task.unknown),
    )


def task_answer(task: RoutedTask, served: ServedRun) -> TaskAnswer:
    """A task with its weights."""
    definition = task.definition
    return TaskAnswer(
        task=definition.id,
        labels=list(definition.labels),
        templates=list(definition.templates),
        texts=list(definition.texts),
        routing=routing_view(task, served),
    )


def classify_answer(found: Scores, served: ServedRun, top: int | None, *, experts: bool) -> ClassifyAnswer:
    """Ranked labels of every image; equal scores in the order of the labels."""
    names = found.task.definition.names
    results = []
    for image, scores_l in enumerate(found.scores_il):
        order = np.argsort(-scores_l, kind="stable")[:top]
        said = None
        if experts:
            said = [
                ExpertScores(id=expert, weight=float(found.weights[expert]), scores=cosines_il[image, order].tolist())
                for expert, cosines_il in found.cosines_il.items()
            ]
        results.append(
            ClassifyResult(
                labels=[names[place] for place in order],
                scores=scores_l[order].tolist(),
                probabilities=found.probabilities_il[image, order].tolist(),
                experts=said,
            )
        )
    return ClassifyAnswer(
        results=results,
        routing=routing_view(found.task, served, found.weights),
        task=found.task.definition.id,
        degraded=bool(found.left_out),
        left_out=list(found.left_out),
    )


def score_answer(found: Scores, served: ServedRun) -> ScoreAnswer:
    """Scores in the order of images and texts."""
    each = found.weights.ndim == 2
    return ScoreAnswer(
        texts=list(found.task.definition.names),
        scores=found.scores_il.tolist(),
        routing=None if each else routing_view(found.task, served, found.weights),
        task=found.task.definition.id,
        degraded=bool(found.left_out),
        left_out=list(found.left_out),
    )


def embeddings_view(found: Embedded, *, by_expert: bool) -> Embeddings:
    """Side by side, or of every expert."""
    return Embeddings(
        concatenated=None if by_expert else found.concatenated.tolist(),
        experts={expert: rows.tolist() for expert, rows in found.by_expert.items()} if by_expert else None,
        dimensions=dict(found.dimensions),
    )


def clusters_answer(
    served: ServedRun, offset: int, limit: int, *, contains: str = "", expert: int | None = None
) -> ClustersAnswer:
    """Some of the fine clusters, by number: those of one expert, or with a text in a word or caption, or `#` an id."""
    group_m = served.clustering.experts_of(served.n)
    found = [
        fine
        for fine in range(len(group_m))
        if (expert is None or group_m[fine] == expert) and _cluster_has(served, fine, contains.strip().casefold())
    ]
    return ClustersAnswer(
        clusters=[
            ClusterView(
                fine=fine,
                expert=int(group_m[fine]),
                mass=int(served.clustering.mass_m[fine]),
                terms=list(served.terms[fine]),
                captions=list(served.captions[fine]),
            )
            for fine in found[offset : offset + limit]
        ],
        total=len(found),
        atlas=served.atlas is not None,
    )


def _cluster_has(served: ServedRun, fine: int, contains: str) -> bool:
    if contains.startswith("#") and contains[1:].isdecimal():
        return int(contains[1:]) == fine
    return not contains or any(contains in text.casefold() for text in (*served.terms[fine], *served.captions[fine]))


def binary_type(request: Request) -> str | None:
    """The binary form that a request asks for by its Accept header, or None."""
    asked = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    return next((kind for kind in asked if kind in BINARY_TYPES), None)


def binary_answer(rows: Floats, kind: str, about: Mapping[str, str]) -> Response:
    """Numbers alone, little-endian, row by row; the shape is in the header `X-Shape`."""
    shape = ",".join(str(length) for length in rows.shape)
    data = np.ascontiguousarray(rows, BINARY_TYPES[kind]).tobytes()
    return Response(data, media_type=kind, headers={"X-Shape": shape, **about})


def about_answer(left_out: tuple[int, ...], task: RoutedTask | None = None) -> dict[str, str]:
    """What every answer of the experts says in headers, whatever the shape of its body."""
    headers = {"X-Degraded": str(bool(left_out)).lower(), "X-Left-Out": ",".join(map(str, left_out))}
    return headers if task is None else {**headers, "X-Task": task.definition.id}
