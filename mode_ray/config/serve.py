"""How a run is served: the section `serve` of a run's config; nothing in it decides what a stage makes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mode_ray.config.base import Placement, PositiveFloat, PositiveInt, Share, Strings

_SHA256_DIGITS = 64


class ServeLimits(Placement):
    """What a request may hold. More is refused with one sentence that names the limit."""

    body_bytes: PositiveInt = 16 << 20
    """Of one request. docs/serving.md tells how many bodies lie in memory at a time."""
    image_pixels: PositiveInt = 25_000_000
    """Larger images are refused before they are decoded, and those so elongated that they would be larger resized."""
    images: PositiveInt = 64
    """Images of one request."""
    labels: PositiveInt = 1000
    templates: PositiveInt = 100
    texts: PositiveInt = 10_000
    """Texts of one task: labels times templates, or texts given as such."""
    text_characters: PositiveInt = 1000
    """Of one label, template or text."""


class PruningConfig(Placement):
    """Which experts answer: those that matter for the task. The answer says which did."""

    experts: PositiveInt | None = None
    """Only so many, those with the largest weights; by default as many as cover `share`."""
    share: Share = 0.98
    """Without `experts`: the fewest experts that cover this share of the weight. 1 asks all."""


class Replicas(Placement):
    """How many copies of a deployment Ray Serve runs."""

    min: PositiveInt = 1
    max: PositiveInt = 1
    """Above `min`, Ray Serve adds and removes copies by load."""
    target_ongoing_requests: PositiveFloat = 8.0
    """Requests that a copy works on at the same time, by which the number of copies is chosen."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}")
        return self


class ServeConfig(Placement):
    """The ensemble behind HTTP; docs/serving.md is the guide."""

    host: str = "127.0.0.1"
    """Where to listen; by default this machine alone."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    token_hashes: Strings = ()
    """SHA-256, as 64 hex digits, of every bearer token that is let in. None: everybody is."""
    templates: Strings = ("a photo of a {}.",)
    """Of labels that come without any; `{}` stands for the label."""
    limits: ServeLimits = ServeLimits()
    pruning: PruningConfig = PruningConfig()
    expert_deadline_seconds: PositiveFloat = 10.0
    """An expert that has not answered by then is left out, and the answer is marked `degraded`."""
    request_deadline_seconds: PositiveFloat = 30.0
    """A request that is not answered by then gets 503."""
    max_queued_requests: PositiveInt = 64
    """Requests in work or waiting, of the service and of every expert; more get 503 with Retry-After."""
    cached_tasks: PositiveInt = 256
    """Tasks whose weights and class embeddings stay in memory, those used last."""
    cached_task_bytes: PositiveInt = 512 << 20
    """Of their class embeddings together."""
    max_batch_size: PositiveInt = 32
    """Images that go through an expert at once, of as many requests as there are."""
    batch_wait_seconds: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How long an idle expert waits for further images before it begins. Busy ones collect what comes meanwhile."""
    device: str = "auto"
    """Of the experts: `auto`, `cpu`, `cuda`, …."""
    threads_per_expert: PositiveInt = 1
    """CPU threads of one pass through an expert."""
    threads_in_process: PositiveInt | None = None
    """With `--in-process`: CPU threads of all experts together; by default the cores there are."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the experts; answers are float32 whatever it is."""
    expert_replicas: Replicas = Replicas()
    router_replicas: Replicas = Replicas(min=2, max=2)
    cpus_per_expert: Annotated[float, Field(ge=0.0)] = 1.0
    """Of one replica, as Ray counts them."""
    gpus_per_expert: Annotated[float, Field(ge=0.0)] = 0.0
    router_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    task_directory: str | None = None
    """Where registered tasks are kept, so that every router knows them; by default `serving/tasks` of the run."""
    max_stored_tasks: PositiveInt = 10_000
    """With more, the oldest go."""

    @model_validator(mode="after")
    def _hashes_are_hashes(self) -> Self:
        for value in self.token_hashes:
            if len(value) != _SHA256_DIGITS or not set(value) <= set("0123456789abcdef"):
                raise ValueError("token_hashes has an entry that is not a SHA-256 in 64 lower-case hex digits")
        return self
