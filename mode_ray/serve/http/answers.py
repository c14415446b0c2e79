"""Turns results of the service into answers: JSON models, or binary numbers if the client asks for them."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from fastapi import Request, Response
from pydantic import BaseModel

from mode_ray.serve.http.schema import (
    ClassifyAnswer,
    ClassifyResult,
    ClustersAnswer,
    ClusterView,
    EmbedAnswer,
    Embeddings,
    ExpertScores,
    ExpertWeight,
    NearestClusterView,
    Routing,
    ScoreAnswer,
    TaskAnswer,
)
from mode_ray.serve.service.ensemble_service import Embedded, Scores
from mode_ray.serve.service.errors import ServiceError
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_routing import RoutedTask

CAPTIONS_SHOWN = 3
BINARY_TYPES = {"application/x-float32": "<f4", "application/x-float16": "<f2"}

Floats = npt.NDArray[np.floating]


def routing_view(task: RoutedTask, served: ServedRun, applied_c: Floats | None = None) -> Routing:
    """A task's weights; `applied_c` are the weights used in an answer, by default the weights themselves."""
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
                text=cluster.label,
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
        truncated=list(task.truncated),
    )


def classify_answer(found: Scores, served: ServedRun, top: int | None, *, experts: bool) -> ClassifyAnswer:
    """The ranked labels of every image; labels with equal scores keep their order."""
    names = found.task.definition.names
    results = []
    for image, scores_l in enumerate(found.scores_il):
        order = np.argsort(-scores_l, kind="stable")[:top]
        by_expert = [
            ExpertScores(id=expert, weight=float(found.weights[expert]), scores=cosines_il[image, order].tolist())
            for expert, cosines_il in found.cosines_il.items()
        ]
        results.append(
            ClassifyResult(
                labels=[names[position] for position in order],
                scores=scores_l[order].tolist(),
                probabilities=found.probabilities_il[image, order].tolist(),
                experts=by_expert if experts else None,
            )
        )
    return ClassifyAnswer(
        results=results,
        routing=routing_view(found.task, served, found.weights),
        task=found.task.definition.id,
        degraded=bool(found.left_out),
        left_out=list(found.left_out),
        truncated=list(found.task.truncated),
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
        truncated=list(found.task.truncated),
    )


def embed_answer(images: Embedded | None, texts: Embedded | None, *, by_expert: bool) -> EmbedAnswer:
    """Embeddings side by side, or of every expert."""

    def view(found: Embedded | None) -> Embeddings | None:
        if found is None:
            return None
        experts = {expert: rows.tolist() for expert, rows in found.by_expert.items()}
        return Embeddings(
            concatenated=None if by_expert else found.concatenated.tolist(),
            experts=experts if by_expert else None,
            dimensions=dict(found.dimensions),
        )

    left_out = texts.left_out if texts else ()
    return EmbedAnswer(
        images=view(images),
        texts=view(texts),
        degraded=bool(left_out),
        left_out=list(left_out),
        truncated=list(texts.truncated) if texts else [],
    )


def clusters_answer(
    served: ServedRun, offset: int, limit: int, *, contains: str = "", expert: int | None = None
) -> ClustersAnswer:
    """A page of the fine clusters that match a filter.

    Args:
        served: The run.
        offset: First match of the page.
        limit: Matches per page.
        contains: A text in a word or caption, or `#` and a cluster's number; empty for all clusters.
        expert: Only clusters of this expert.
    """
    group_m = served.clustering.experts_of(served.n)
    found = [
        fine
        for fine in range(len(group_m))
        if (expert is None or group_m[fine] == expert) and _matches(served, fine, contains.strip().casefold())
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


def _matches(served: ServedRun, fine: int, contains: str) -> bool:
    if contains.startswith("#") and contains[1:].isdecimal():
        return int(contains[1:]) == fine
    return not contains or any(contains in text.casefold() for text in (*served.terms[fine], *served.captions[fine]))


def answer_headers(found: Scores | Embedded | None) -> dict[str, str]:
    """The headers of an answer of the experts, in JSON and in binary; None for an answer without texts."""
    left_out = found.left_out if found else ()
    truncated: Sequence[str] = ()
    headers = {}
    if isinstance(found, Scores):
        truncated = found.task.truncated
        headers["X-Task"] = found.task.definition.id
    elif found:
        truncated = found.truncated
    return {
        "X-Degraded": str(bool(left_out)).lower(),
        "X-Left-Out": ",".join(map(str, left_out)),
        "X-Truncated": str(len(truncated)),
        **headers,
    }


async def respond(
    request: Request, rows: Floats | None, answer: Callable[[], BaseModel], headers: dict[str, str]
) -> Response:
    """Answer in the form that the Accept header asks for.

    Args:
        request: The request.
        rows: The numbers of a binary answer: little-endian, row by row, with the shape in the header `X-Shape`. None
            if the answer has no binary form.
        answer: Makes the JSON answer.
        headers: Of the answer.

    Raises:
        ServiceError: A binary answer is asked for and there is none.
    """
    asked = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    kind = next((kind for kind in asked if kind in BINARY_TYPES), None)
    if kind is None:
        # In a thread: many numbers take a while to write.
        text = await asyncio.to_thread(lambda: answer().model_dump_json())
        return Response(text, media_type="application/json", headers=headers)
    if rows is None:
        raise ServiceError("not_binary", "binary answers hold one kind of concatenated rows", field="kind")
    data = np.ascontiguousarray(rows, BINARY_TYPES[kind]).tobytes()
    shape = ",".join(map(str, rows.shape))
    return Response(data, media_type=kind, headers={"X-Shape": shape, **headers})
