"""The HTTP interface `/v1` of the ensemble; docs/serving.md is its guide."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware

from mode_ray import __version__
from mode_ray.config.evaluate import RoutingRule
from mode_ray.config.serve import ServeConfig
from mode_ray.serve.http.answers import (
    BINARY_TYPES,
    answer_headers,
    classify_answer,
    clusters_answer,
    embed_answer,
    respond,
    score_answer,
    task_answer,
)
from mode_ray.serve.http.api_errors import install_error_handlers
from mode_ray.serve.http.compatible_api import compatible_routes
from mode_ray.serve.http.page import page_routes
from mode_ray.serve.http.protection import Protection
from mode_ray.serve.http.request_forms import query_fields, read_request, request_body
from mode_ray.serve.http.schema import (
    ANSWER_HEADERS,
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
)
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.errors import ServiceError

GetService = Callable[[], EnsembleService]
_REQUESTS_WITH_IMAGES: tuple[type[BaseModel], ...] = (ClassifyRequest, ScoreRequest, EmbedRequest)
_STATUSES = {
    400: "the body is not valid JSON or multipart",
    401: "no valid bearer token",
    404: "no such task",
    413: "the body is too large",
    415: "the content type is not supported",
    422: "the request is wrong, or exceeds a limit",
    503: "too many requests, or no expert answers: try again after Retry-After seconds",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in _STATUSES.items()
}


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
    app.add_middleware(Protection, config=config, get_metrics=lambda: get_service().metrics)
    if config.cors_origins:
        # Outside of the protection: a browser asks for permission without a token, and reads errors too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After", "X-Shape", *ANSWER_HEADERS],
        )
    for routes in (_task_routes, _image_routes, _state_routes, compatible_routes):
        app.include_router(routes(get_service))
    app.include_router(page_routes(lambda: get_service().served.atlas))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        page = get_service().metrics.exposition()
        if page is None:
            raise ServiceError("not_found", "Ray exports the metrics, on every node's metrics port", 404)
        return Response(page[0], media_type=page[1])

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _task_routes(get_service: GetService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["tasks"])

    @router.post("/tasks")
    async def register_task(request: TaskRequest) -> TaskAnswer:
        """Register labels or texts; the id is the hash of the content, and every router of the run knows it."""
        service = get_service()
        return task_answer(await service.register(request.definition(*_defaults(service))), service.served)

    @router.get("/tasks/{task_id}")
    async def task(task_id: str) -> TaskAnswer:
        """A registered task."""
        service = get_service()
        return task_answer(await service.task(task_id), service.served)

    @router.post("/route")
    async def route(request: TaskRequest) -> TaskAnswer:
        """The experts that would answer; nothing is stored."""
        service = get_service()
        return task_answer(await service.task(request.definition(*_defaults(service))), service.served)

    return router


def _image_routes(get_service: GetService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["images"])

    @router.post("/classify", **_documented(ClassifyRequest, ClassifyAnswer))
    async def classify(request: Request) -> Response:
        """Rank labels for images. Binary: the scores [images, labels], in the order of the task's labels."""
        service = get_service()
        wanted = await read_request(request, ClassifyRequest, service.config.limits)
        found = await service.score(_bytes(wanted.images), wanted.task_or_id(*_defaults(service)))
        return await respond(
            request,
            found.scores_il,
            lambda: classify_answer(found, service.served, wanted.top, experts=wanted.experts),
            answer_headers(found),
        )

    @router.post("/score", **_documented(ScoreRequest, ScoreAnswer))
    async def score(request: Request) -> Response:
        """Score images against texts. Binary: the scores [images, texts]."""
        service = get_service()
        wanted = await read_request(request, ScoreRequest, service.config.limits)
        task = wanted.task_or_id(*_defaults(service))
        found = await service.score(_bytes(wanted.images), task, each_text_routed=wanted.each_text_routed)
        return await respond(
            request,
            found.scores_il,
            lambda: score_answer(found, service.served),
            answer_headers(found),
        )

    @router.post("/embed", **_documented(EmbedRequest, EmbedAnswer))
    async def embed(request: Request) -> Response:
        """Embed images, texts, or both. Binary: [rows, dimension], of images or texts alone, concatenated."""
        service = get_service()
        wanted = await read_request(request, EmbedRequest, service.config.limits)
        if not wanted.images and not wanted.texts:
            raise ServiceError("nothing_to_embed", "give at least one image or text", field="images")
        by_expert = wanted.kind == "experts"
        images = texts = only = None
        if wanted.images:
            images = only = await service.embed_images(_bytes(wanted.images))
        if wanted.texts:
            texts = only = await service.embed_texts(
                wanted.texts, wanted.rule, as_one_task=wanted.as_one_task, pruned=not by_expert
            )
        return await respond(
            request,
            None if only is None or by_expert or (images and texts) else only.concatenated,
            lambda: embed_answer(images, texts, by_expert=by_expert),
            answer_headers(texts),
        )

    return router


def _state_routes(get_service: GetService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["state"])

    @router.get("/experts")
    async def experts() -> ExpertsAnswer:
        """The run's experts, and whether they answer."""
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
        """The fine clusters, with typical words and captions if the run has an atlas.

        `filter` keeps clusters with a text in a word or caption, or with `#12` cluster 12; `expert` those of one.
        """
        served = get_service().served
        return await asyncio.to_thread(clusters_answer, served, offset, limit, contains=contains, expert=expert)

    @router.get("/health")
    async def health() -> Health:
        """Whether the process answers; needs no token."""
        return Health()

    @router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready() -> JSONResponse:
        """Whether requests can be answered, by at least one expert; needs no token."""
        available = {expert: found is not None for expert, found in (await get_service().describe_experts()).items()}
        answer = Readiness(ready=any(available.values()), experts=available)
        return JSONResponse(answer.model_dump(mode="json"), 200 if answer.ready else 503)

    return router


def _defaults(service: EnsembleService) -> tuple[Sequence[str], RoutingRule]:
    """Templates and rule for requests that name none."""
    return service.config.templates, service.served.config.routing.rule


def _bytes(images: Sequence[ImageData]) -> list[bytes]:
    return [image.base64 for image in images]


def _documented(request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of a route that reads its request itself and also answers in binary."""
    binary = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in BINARY_TYPES}
    return {
        "response_model": answer,
        "responses": {200: {"content": binary, "headers": ANSWER_HEADERS}},
        "openapi_extra": {"requestBody": request_body(request), "parameters": query_fields(request)},
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the models of the requests that the routes read themselves."""
    if not app.openapi_schema:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, models = models_json_schema(
            [(model, "validation") for model in _REQUESTS_WITH_IMAGES], ref_template="#/components/schemas/{model}"
        )
        schemas: Mapping[str, Any] = models["$defs"]
        document["components"]["schemas"] = {**schemas, **document["components"]["schemas"]}
        app.openapi_schema = document
    return app.openapi_schema
