"""The models of requests and answers. FastAPI makes the OpenAPI document from them, with the examples."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mode_ray.config.evaluate import RoutingRule
from mode_ray.serve.http.encoded_fields import Base64Image, InputTexts
from mode_ray.serve.service.errors import ServiceError
from mode_ray.serve.service.task_definition import TaskDefinition

# A red and a blue pixel, so that the examples are valid requests.
EXAMPLE_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAADUlEQVR42mP4zwAE/wEHAAH/PX2MSQAAAABJRU5ErkJggg=="

_TRUNCATED = "labels or texts that are longer than the experts' context: they ignore the end of these"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def _example(**fields: Any) -> ConfigDict:  # noqa: ANN401  (any JSON)
    return ConfigDict(extra="forbid", protected_namespaces=(), json_schema_extra={"examples": [fields]})


class ImageData(_Message):
    """An image. The server never fetches an address."""

    base64: Base64Image = Field(
        description="JPEG, PNG, WebP, GIF or BMP, recognised by its content; also URL-safe, or as a data URL"
    )


class _OfTask(_Message):
    """A request about a task. Subclasses add those of the fields `labels`, `templates` and `texts` they have."""

    rule: RoutingRule | None = Field(default=None, description="the routing rule; by default the run's")

    def definition(self, templates: Sequence[str], rule: RoutingRule) -> TaskDefinition:
        """The task that the request describes.

        Args:
            templates: For labels without templates.
            rule: For a request without a rule.

        Raises:
            ServiceError: The request has neither labels nor texts, both, or templates without labels.
        """
        given = TaskDefinition(**self._given(), rule=self.rule or rule)
        if not given.names:
            kind = "labels" if "labels" in type(self).model_fields else "texts"
            raise ServiceError("no_texts", f"{kind}: give at least one", field=kind)
        if given.texts and (given.labels or given.templates):
            raise ServiceError("ambiguous_task", "give labels (with templates) or texts, not both", field="texts")
        used = (given.templates or tuple(templates)) if given.labels else ()
        return given.model_copy(update={"templates": used})

    def _given(self) -> dict[str, Any]:
        return self.model_dump(include={"labels", "templates", "texts"})


class _OfTaskOrId(_OfTask):
    task: str | None = Field(default=None, description="id of a registered task, instead of its labels or texts")

    def task_or_id(self, templates: Sequence[str], rule: RoutingRule) -> TaskDefinition | str:
        """The task that the request describes, or the id that it gives; arguments and errors as `definition`."""
        if self.task is None:
            return self.definition(templates, rule)
        if self.rule or any(self._given().values()):
            raise ServiceError(
                "ambiguous_task", "give a task's id, or its labels, texts and rule, not both", field="task"
            )
        return self.task


class TaskRequest(_OfTask):
    """A task to register or to route: labels with templates, or texts."""

    model_config = _example(labels=["cat", "dog"], templates=["a photo of a {}."])

    labels: list[str] = Field(default=[], description="class names")
    templates: list[str] = Field(default=[], description="with `{}` for the label; by default the server's")
    texts: list[str] = Field(default=[], description="texts that are used as they are, instead of labels")


class ClassifyRequest(_OfTaskOrId):
    """Images, and labels or the id of a task."""

    model_config = _example(images=[{"base64": EXAMPLE_PNG}], labels=["cat", "dog"])

    images: list[ImageData]
    labels: list[str] = []
    templates: list[str] = []
    top: Annotated[int, Field(ge=1)] | None = Field(default=None, description="number of labels to return")
    experts: bool = Field(default=False, description="whether to return every expert's scores")


class ScoreRequest(_OfTaskOrId):
    """Images and texts."""

    model_config = _example(images=[{"base64": EXAMPLE_PNG}], texts=["a cat on a sofa", "a dog in the snow"])

    images: list[ImageData]
    texts: list[str] = []
    each_text_routed: bool = Field(
        default=False, description="whether every text is a task of its own, as in image retrieval"
    )


class EmbedRequest(_Message):
    """Images, texts, or both."""

    model_config = _example(texts=["a cat on a sofa"], kind="concatenated")

    images: list[ImageData] = []
    texts: list[str] = []
    kind: Literal["concatenated", "experts"] = Field(
        default="concatenated",
        description="`concatenated`: the experts' embeddings side by side, of texts times the experts' weights: the "
        "inner product of an image's and a text's is the ensemble's score. `experts`: every expert's unit embeddings",
    )
    rule: RoutingRule | None = None
    as_one_task: bool = Field(default=False, description="whether all texts are routed together")


class ExpertWeight(_Message):
    """An expert's weight for a task."""

    id: int
    weight: float = Field(description="by the routing rule; all weights sum to 1")
    used: bool = Field(description="whether the expert contributes to the answer")
    applied: float = Field(description="weight in the answer, after pruning; those of the used experts sum to 1")


class NearestClusterView(_Message):
    """The fine cluster that a label is nearest to."""

    text: str
    fine: int
    expert: int
    squared_distance: float
    captions: list[str] = Field(description="captions near the cluster's center")


class Routing(_Message):
    """The experts' weights for a task, and the reasons for them."""

    weights: list[ExpertWeight]
    entropy: float = Field(description="of the weights: 0 = one expert, 1 = uniform")
    rule: RoutingRule
    clusters: list[NearestClusterView]
    unknown: list[str] = Field(
        description="labels without a word that the caption encoder knows: they do not influence the weights"
    )


class TaskAnswer(_Message):
    """A task with its weights."""

    task: str = Field(description="its id")
    labels: list[str]
    templates: list[str]
    texts: list[str]
    routing: Routing
    truncated: list[str] = Field(description=_TRUNCATED)


class ExpertScores(_Message):
    """The scores of one expert."""

    id: int
    weight: float
    scores: list[float] = Field(description="its cosines, in the order of the labels")


class ClassifyResult(_Message):
    """The ranked labels of one image."""

    labels: list[str] = Field(description="best first")
    scores: list[float] = Field(description="weighted means of the experts' cosines")
    probabilities: list[float] = Field(description="softmax of s times the scores, over all labels of the task")
    experts: list[ExpertScores] | None = None


class _ExpertsAnswer(_Message):
    degraded: bool = Field(description="whether an expert that belongs to the answer is missing")
    left_out: list[int] = Field(description="the missing experts")
    truncated: list[str] = Field(description=_TRUNCATED)


class ClassifyAnswer(_ExpertsAnswer):
    """One result per image, in the order of the images."""

    results: list[ClassifyResult]
    routing: Routing
    task: str


class ScoreAnswer(_ExpertsAnswer):
    """The scores of images with texts."""

    texts: list[str]
    scores: list[list[float]] = Field(description="for every image its scores with all texts")
    routing: Routing | None = Field(description="null if every text was routed by itself")
    task: str


class Embeddings(_Message):
    """Rows of numbers."""

    concatenated: list[list[float]] | None = None
    experts: dict[int, list[list[float]]] | None = None
    dimensions: dict[int, int] = Field(description="width of every expert's part, in the order of the ids")


class EmbedAnswer(_ExpertsAnswer):
    """The embeddings of images and texts."""

    images: Embeddings | None = None
    texts: Embeddings | None = None


class ExpertView(_Message):
    """An expert of the run."""

    id: int
    available: bool
    source: str | None = None
    dimension: int | None = None
    logit_scale: float | None = None
    share: float = Field(description="of the captions that the clustering was fitted on")
    clusters: int = Field(description="number of its fine clusters")


class ExpertsAnswer(_Message):
    """All experts of the run."""

    experts: list[ExpertView]
    rule: RoutingRule
    image_size: tuple[int, int]


class ClusterView(_Message):
    """A fine cluster."""

    fine: int
    expert: int
    mass: int = Field(description="captions of the fitted sample that belong to it")
    terms: list[str]
    captions: list[str]


class ClustersAnswer(_Message):
    """A page of fine clusters."""

    clusters: list[ClusterView]
    total: int = Field(description="number of clusters that match the filter, on all pages")
    atlas: bool = Field(description="whether the run has an atlas, at `/atlas`")


class Health(_Message):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(_Message):
    """Whether requests can be answered."""

    ready: bool
    experts: dict[int, bool]


class ErrorBody(_Message):
    """What is wrong."""

    code: str = Field(description="a fixed word")
    message: str = Field(description="one sentence")
    field: str | None = Field(description="the field of the request that is wrong")
    request_id: str


class ErrorAnswer(_Message):
    """The form of every error of the application."""

    error: ErrorBody


class OpenAIEmbeddingRequest(BaseModel):
    """A request as OpenAI defines it. Fields that have no meaning here are ignored."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"model": "mode", "input": ["a cat on a sofa"]}]}
    )

    input: InputTexts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class OpenAIEmbedding(_Message):
    """The embedding of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIEmbeddingAnswer(_Message):
    """An answer as OpenAI defines it."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: dict[str, int]


class OpenAIModel(_Message):
    """The ensemble as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the server started, in Unix seconds")
    owned_by: str = "mode_ray"


class OpenAIModels(_Message):
    """An answer as OpenAI defines it."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class HuggingFaceParameters(BaseModel):
    """Parameters of the pipeline `zero-shot-image-classification`."""

    model_config = ConfigDict(extra="ignore")

    candidate_labels: list[str]
    hypothesis_template: str | None = None


class HuggingFaceRequest(BaseModel):
    """A request as `huggingface_hub.InferenceClient` sends it."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"inputs": EXAMPLE_PNG, "parameters": {"candidate_labels": ["cat", "dog"]}}]},
    )

    inputs: Base64Image
    parameters: HuggingFaceParameters


class HuggingFaceLabel(_Message):
    """A label with its probability."""

    label: str
    score: float


ANSWER_HEADERS: dict[str, Any] = {
    name: {"description": description, "schema": {"type": kind}}
    for name, kind, description in (
        ("X-Task", "string", "id of the task; for classify and score"),
        ("X-Degraded", "boolean", "whether an expert that belongs to the answer is missing"),
        ("X-Left-Out", "string", "the missing experts, separated by commas"),
        ("X-Truncated", "integer", "number of labels or texts that are longer than the experts' context"),
    )
}
"""The headers of an answer, for the OpenAPI document."""
