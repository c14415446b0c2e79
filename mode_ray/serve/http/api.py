"""The HTTP interface `/v1` of the ensemble; docs/serving.md is its guide."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mode_ray import __version__
from mode_ray.config.evaluate import RoutingRule
from mode_ray.config.serve import ServeConfig
from mode_ray.serve.http.answers import (
    about_answer,
    binary_answer,
    binary_type,
    classify_answer,
    clusters_answer,
    embeddings_view,
    score_answer,
    task_answer,
)
from mode_ray.serve.http.api_errors import install_error_handlers
from mode_ray.serve.http.compatible_api import compatible_routes
from mode_ray.serve.http.page import page_routes
from mode_ray.serve.http.protection import Protection
from mode_ray.serve.http.request_forms import query_fields, read_request, request_body
from mode_ray.serve.http.schema import (
    ClassifyAnswer,
    ClassifyRequest,
    ClustersAnswer,
    EmbedAnswer,
    EmbedRequest,
    ErrorAnswer,
    ExpertsAnswer,
    ExpertView,
    Health,
    ImageData,
    Readiness,
    ScoreAnswer,
    ScoreRequest,
    TaskAnswer,
    TaskRequest,
    answer_headers,
    binary_content,
)
from mode_ray.serve.service.ensemble_service import EnsembleService, Scores
from mode_ray.serve.service.errors import ServiceError
from mode_ray.serve.service.task_definition import TaskDefinition

GetService = Callable[[], EnsembleService]
_MANY_FORMS: tuple[type[BaseModel], ...] = (ClassifyRequest, ScoreRequest, EmbedRequest)
_STATUSES = {
    400: "not JSON, or not multipart as it should be",
    401: "no valid bearer token",
    404: "no such task",
    413: "the body is too large",
    415: "a content type that is not taken",
    422: "the request is wrong, or exceeds a limit",
    503: "too much is asked at the moment, or no expert answers: try again after Retry-After seconds",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in _STATUSES.items()
}
_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"content": binary_content(), "headers": answer_headers()}}


def create_app(get_service: GetService, config: ServeConfig) -> FastAPI:
    """The application.

    Args:
        get_service: Returns the service; called for every request.
        config: Tokens, limits, deadlines.
    """
    app = FastAPI(
        title="mode_ray",
        version=__version__,
        summary="An ensemble of CLIP data experts behind HTTP",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        responses=_ERRORS,
    )
    install_error_handlers(app)
    app.add_middleware(Protection, config=config, get_observer=lambda: get_service().metrics)
    app.include_router(_task_routes(get_service, config))
    app.include_router(_image_routes(get_service, config))
    app.include_router(_state_routes(get_service))
    app.include_router(compatible_routes(get_service, config))
    app.include_router(page_routes(lambda: get_service().served.atlas))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        page = get_service().metrics.exposition()
        if page is None:
            raise ServiceError("not_found", "metrics are exported elsewhere", 404)
        return Response(page[0], media_type=page[1])

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _task_routes(get_service: GetService, config: ServeConfig) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["tasks"])

    def definition(request: TaskRequest) -> TaskDefinition:
        return define(get_service(), config, request.labels, request.templates, request.texts, request.rule)

    @router.post("/tasks")
    async def register_task(request: TaskRequest) -> TaskAnswer:
        """Register labels or texts; the id is the hash of the content, and known to every router of the run."""
        service = get_service()
        return task_answer(await service.register(definition(request)), service.served)

    @router.get("/tasks/{task_id}")
    async def task(task_id: str) -> TaskAnswer:
        """A registered task."""
        service = get_service()
        return task_answer(await service.task(task_id), service.served)

    @router.post("/route")
    async def route(request: TaskRequest) -> TaskAnswer:
        """Which experts would answer; nothing is kept."""
        service = get_service()
        return task_answer(await service.task(definition(request)), service.served)

    return router


def _image_routes(get_service: GetService, config: ServeConfig) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["images"])

    @router.post(
        "/classify",
        response_model=ClassifyAnswer,
        responses=_ANSWERS,
        openapi_extra=_forms(ClassifyRequest),
    )
    async def classify(request: Request) -> Response:
        """Rank labels for images. Binary: the scores [images, labels], in the order of the task's labels."""
        service = get_service()
        wanted = await read_request(request, ClassifyRequest, config.limits)
        task = _task_of(service, config, wanted.task, wanted.labels, wanted.templates, (), wanted.rule)
        found = await service.score(_bytes(wanted.images), task)
        return await _scores_response(
            request,
            found,
            lambda: classify_answer(found, service.served, wanted.top, experts=wanted.experts),
        )

    @router.post(
        "/score",
        response_model=ScoreAnswer,
        responses=_ANSWERS,
        openapi_extra=_forms(ScoreRequest),
    )
    async def score(request: Request) -> Response:
        """Score images against texts. Binary: the scores [images, texts]."""
        service = get_service()
        wanted = await read_request(request, ScoreRequest, config.limits)
        task = _task_of(service, config, wanted.task, (), (), wanted.texts, wanted.rule)
        found = await service.score(_bytes(wanted.images), task, each_text_routed=wanted.each_text_routed)
        return await _scores_response(request, found, lambda: score_answer(found, service.served))

    @router.post(
        "/embed",
        response_model=EmbedAnswer,
        responses=_ANSWERS,
        openapi_extra=_forms(EmbedRequest),
    )
    async def embed(request: Request) -> Response:
        """Embed images, texts, or both. Binary: [rows, dimension], of images or texts alone, concatenated."""
        service = get_service()
        wanted = await read_request(request, EmbedRequest, config.limits)
        if not wanted.images and not wanted.texts:
            raise ServiceError("nothing_to_embed", "give at least one image or text", field="images")
        images = await service.embed_images(_bytes(wanted.images)) if wanted.images else None
        texts = None
        if wanted.texts:
            texts = await service.embed_texts(wanted.texts, wanted.rule, as_one_task=wanted.as_one_task)
        left_out = texts.left_out if texts else ()
        about = about_answer(left_out)
        kind = binary_type(request)
        by_expert = wanted.kind == "experts"
        if kind is not None:
            only = images or texts
            if only is None or (images and texts) or by_expert:
                raise ServiceError("not_binary", "binary answers hold one kind of concatenated rows", field="kind")
            return binary_answer(only.concatenated, kind, about)
        return await _json_response(
            lambda: EmbedAnswer(
                images=embeddings_view(images, by_expert=by_expert) if images else None,
                texts=embeddings_view(texts, by_expert=by_expert) if texts else None,
                degraded=bool(left_out),
                left_out=list(left_out),
            ),
            about,
        )

    return router


def _state_routes(get_service: GetService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["state"])

    @router.get("/experts")
    async def experts() -> ExpertsAnswer:
        """The run's experts, and which of them answer."""
        service = get_service()
        served = service.served
        mass_n, group_m = served.clustering.masses(served.n), served.clustering.experts_of(served.n)
        described = await service.describe_experts()
        return ExpertsAnswer(
            experts=[
                ExpertView(
                    id=expert,
                    available=found is not None,
                    source=found and found.source,
                    dimension=found and found.dimension,
                    logit_scale=found and found.logit_scale,
                    share=float(mass_n[expert] / max(mass_n.sum(), 1)),
                    clusters=int((group_m == expert).sum()),
                )
                for expert, found in described.items()
            ],
            rule=served.config.routing.rule,
            image_size=served.geometry.size,
        )

    @router.get("/clusters")
    async def clusters(
        offset: Annotated[int, Query(ge=0, le=1 << 31)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        contains: Annotated[str, Query(alias="filter", max_length=200)] = "",
        expert: Annotated[int | None, Query(ge=0, le=1 << 31)] = None,
    ) -> ClustersAnswer:
        """The fine clusters, with typical words and captions where the run has an atlas.

        `filter` keeps those that have it in a word or caption, or `#12` the one of that number; `expert` those of one.
        """
        served = get_service().served
        return await asyncio.to_thread(clusters_answer, served, offset, limit, contains=contains, expert=expert)

    @router.get("/health")
    async def health() -> Health:
        """Whether the process answers; needs no token."""
        return Health()

    @router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready() -> JSONResponse:
        """Whether requests can be answered: at least one expert is there; needs no token."""
        available = {expert: found is not None for expert, found in (await get_service().describe_experts()).items()}
        answer = Readiness(ready=any(available.values()), experts=available)
        return JSONResponse(answer.model_dump(mode="json"), 200 if answer.ready else 503)

    return router


def define(
    service: EnsembleService,
    config: ServeConfig,
    labels: Sequence[str],
    templates: Sequence[str],
    texts: Sequence[str],
    rule: RoutingRule | None,
) -> TaskDefinition:
    """A task of what a request holds, with the server's defaults.

    Raises:
        ServiceError: It has both labels and texts, or templates without labels.
    """
    if texts and (labels or templates):
        raise ServiceError("ambiguous_task", "give labels (with templates) or texts, not both", field="texts")
    return TaskDefinition(
        labels=tuple(labels),
        templates=(tuple(templates) or config.templates) if labels else (),
        texts=tuple(texts),
        rule=rule or service.served.config.routing.rule,
    )


def _task_of(
    service: EnsembleService,
    config: ServeConfig,
    task_id: str | None,
    labels: Sequence[str],
    templates: Sequence[str],
    texts: Sequence[str],
    rule: RoutingRule | None,
) -> TaskDefinition | str:
    if task_id is None:
        return define(service, config, labels, templates, texts, rule)
    if labels or templates or texts or rule:
        raise ServiceError("ambiguous_task", "a task's id stands for its labels, texts and rule", field="task")
    return task_id


def _bytes(images: Sequence[ImageData]) -> list[bytes]:
    return [image.base64 for image in images]


async def _scores_response(request: Request, found: Scores, answer: Callable[[], BaseModel]) -> Response:
    kind = binary_type(request)
    about = about_answer(found.left_out, found.task)
    if kind is not None:
        return binary_answer(found.scores_il, kind, about)
    return await _json_response(answer, about)


async def _json_response(answer: Callable[[], BaseModel], about: Mapping[str, str]) -> Response:
    # Many numbers take a while to write, in which others are answered.
    text = await asyncio.to_thread(lambda: answer().model_dump_json())
    return Response(text, media_type="application/json", headers=dict(about))


def _forms(model: type[BaseModel]) -> dict[str, object]:
    return {"requestBody": request_body(model), "parameters": query_fields(model)}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the models of requests that come in several forms."""
    if not app.openapi_schema:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, models = models_json_schema(
            [(model, "validation") for model in _MANY_FORMS], ref_template="#/components/schemas/{model}"
        )
        schemas: Mapping[str, Any] = models["$defs"]
        document["components"]["schemas"] = {**schemas, **document["components"]["schemas"]}
        app.openapi_schema = document
    return app.openapi_schema
