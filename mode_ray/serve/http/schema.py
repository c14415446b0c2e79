"""What requests and answers look like; the OpenAPI document is made of it, with the examples."""

from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from mode_ray.config.evaluate import RoutingRule

# A red and a blue pixel, so that the examples are real requests.
EXAMPLE_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAADUlEQVR42mP4zwAE/wEHAAH/PX2MSQAAAABJRU5ErkJggg=="


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def _example(**fields: Any) -> ConfigDict:  # noqa: ANN401  (any JSON)
    return ConfigDict(extra="forbid", protected_namespaces=(), json_schema_extra={"examples": [fields]})


class ImageData(_Message):
    """An image; no address is ever fetched."""

    base64: Base64Bytes = Field(description="JPEG, PNG, WebP, GIF or BMP, told by the content")


class TaskFields(_Message):
    """Labels with templates, or texts."""

    labels: list[str] = Field(default=[], description="class names")
    templates: list[str] = Field(default=[], description="`{}` stands for the label; by default the server's own")
    texts: list[str] = Field(default=[], description="texts as they are, instead of labels")
    rule: RoutingRule | None = Field(default=None, description="how experts are weighed; by default as in the run")


class TaskRequest(TaskFields):
    """A task to register or to route."""

    model_config = _example(labels=["cat", "dog"], templates=["a photo of a {}."])


class ClassifyRequest(_Message):
    """Images, and labels or the id of a task."""

    model_config = _example(images=[{"base64": EXAMPLE_PNG}], labels=["cat", "dog"])

    images: list[ImageData]
    labels: list[str] = []
    templates: list[str] = []
    rule: RoutingRule | None = None
    task: str | None = Field(default=None, description="id of a registered task, instead of labels")
    top: Annotated[int, Field(ge=1)] | None = Field(default=None, description="only so many labels")
    experts: bool = Field(default=False, description="whether to show what every expert says")


class ScoreRequest(_Message):
    """Images and texts."""

    model_config = _example(images=[{"base64": EXAMPLE_PNG}], texts=["a cat on a sofa", "a dog in the snow"])

    images: list[ImageData]
    texts: list[str] = []
    rule: RoutingRule | None = None
    task: str | None = Field(default=None, description="id of a registered task, instead of texts")
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
        "inner product of an image's and a text's is the ensemble's score. `experts`: of every expert by itself",
    )
    rule: RoutingRule | None = None
    as_one_task: bool = Field(default=False, description="whether all texts are routed together")


class ExpertWeight(_Message):
    """An expert's weight for a task."""

    id: int
    weight: float = Field(description="by the routing rule; all together 1")
    used: bool = Field(description="whether the expert is in the answer")
    applied: float = Field(description="weight in the answer, after pruning; of those used together 1")


class NearestClusterView(_Message):
    """The fine cluster that a label lies in."""

    text: str
    fine: int
    expert: int
    squared_distance: float
    captions: list[str] = Field(description="captions near the cluster's center")


class Routing(_Message):
    """Which experts answer a task, and why."""

    weights: list[ExpertWeight]
    entropy: float = Field(description="of the weights: 0 = one expert, 1 = all alike")
    rule: RoutingRule
    clusters: list[NearestClusterView]
    unknown: list[str] = Field(description="labels without a word that the caption encoder knows: not routed by")


class TaskAnswer(_Message):
    """A task."""

    task: str = Field(description="its id")
    labels: list[str]
    templates: list[str]
    texts: list[str]
    routing: Routing


class ExpertScores(_Message):
    """What one expert says."""

    id: int
    weight: float
    scores: list[float] = Field(description="its cosines, in the order of the labels")


class ClassifyResult(_Message):
    """Of one image."""

    labels: list[str] = Field(description="best first")
    scores: list[float] = Field(description="weighted means of the experts' cosines")
    probabilities: list[float] = Field(description="softmax of s times the scores, over all labels of the task")
    experts: list[ExpertScores] | None = None


class ClassifyAnswer(_Message):
    """Of all images, in their order."""

    results: list[ClassifyResult]
    routing: Routing
    task: str
    degraded: bool = Field(description="whether an expert is missing that belongs to the answer")
    left_out: list[int] = Field(description="those experts")


class ScoreAnswer(_Message):
    """Images times texts."""

    texts: list[str]
    scores: list[list[float]] = Field(description="for every image its scores with all texts")
    routing: Routing | None = Field(description="null where every text was routed by itself")
    task: str
    degraded: bool
    left_out: list[int]


class Embeddings(_Message):
    """Rows of numbers."""

    concatenated: list[list[float]] | None = None
    experts: dict[int, list[list[float]]] | None = None
    dimensions: dict[int, int] = Field(description="width of every expert's part, in the order of the ids")


class EmbedAnswer(_Message):
    """Embeddings of what was sent."""

    images: Embeddings | None = None
    texts: Embeddings | None = None
    degraded: bool
    left_out: list[int]


class ExpertView(_Message):
    """An expert of the run."""

    id: int
    available: bool
    source: str | None = None
    dimension: int | None = None
    logit_scale: float | None = None
    share: float = Field(description="of the captions that the clustering was fitted on")
    clusters: int = Field(description="its fine clusters")


class ExpertsAnswer(_Message):
    """All experts of the run."""

    experts: list[ExpertView]
    rule: RoutingRule
    image_size: tuple[int, int]


class ClusterView(_Message):
    """A fine cluster."""

    fine: int
    expert: int
    mass: int = Field(description="captions of the fitted sample that lie in it")
    terms: list[str]
    captions: list[str]


class ClustersAnswer(_Message):
    """A page of fine clusters."""

    clusters: list[ClusterView]
    total: int = Field(description="clusters that passed the filter, on all pages")
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
    field: str | None = Field(description="what of the request it is about")
    request_id: str


class ErrorAnswer(_Message):
    """Every error of the application."""

    error: ErrorBody


class OpenAIEmbeddingRequest(BaseModel):
    """As OpenAI's; fields that mean nothing here are let pass."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"model": "mode", "input": ["a cat on a sofa"]}]}
    )

    input: str | list[str]
    model: str = "mode"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class OpenAIEmbedding(_Message):
    """One text's."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIEmbeddingAnswer(_Message):
    """As OpenAI's."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: dict[str, int]


class HuggingFaceParameters(BaseModel):
    """Of the pipeline `zero-shot-image-classification`."""

    model_config = ConfigDict(extra="ignore")

    candidate_labels: list[str]
    hypothesis_template: str | None = None


class HuggingFaceRequest(BaseModel):
    """As `huggingface_hub.InferenceClient` sends it."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"inputs": EXAMPLE_PNG, "parameters": {"candidate_labels": ["cat", "dog"]}}]},
    )

    inputs: Base64Bytes
    parameters: HuggingFaceParameters


class HuggingFaceLabel(_Message):
    """A label with its probability."""

    label: str
    score: float


def answer_headers() -> dict[str, Any]:
    """The headers of an answer, for the OpenAPI document."""
    headers = {
        "X-Task": ("string", "id of the task; of classify and score"),
        "X-Degraded": ("boolean", "whether an expert is missing that belongs to the answer"),
        "X-Left-Out": ("string", "those experts, with commas between them"),
    }
    return {name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in headers.items()}


def binary_content() -> dict[str, Any]:
    """The binary forms of an answer, for the OpenAPI document."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {"application/x-float32": schema, "application/x-float16": schema}
