"""The section `serve`: how a run is served. It has no influence on the output of a stage."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mode_ray.config.base import Placement, PositiveFloat, PositiveInt, Share, Strings

_SHA256_DIGITS = 64
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")


class ServeLimits(Placement):
    """Limits of a request. A larger request is refused, and the message names the limit."""

    body_bytes: PositiveInt = 16 << 20
    """Size of a request's body. docs/serving.md states how many bodies are in memory at a time."""
    image_pixels: PositiveInt = 25_000_000
    """Larger images are refused before they are decoded, and so are images that resizing would make larger than
    this."""
    images: PositiveInt = 64
    """Images of one request."""
    labels: PositiveInt = 1000
    templates: PositiveInt = 100
    texts: PositiveInt = 10_000
    """Texts of one task: labels times templates, or texts given directly."""
    text_characters: PositiveInt = 1000
    """Length of one label, template or text."""


class PruningConfig(Placement):
    """Which experts are asked: those with the largest weights for the task. The answer names them."""

    experts: PositiveInt | None = None
    """Number of experts to ask; by default as many as cover `share`."""
    share: Share = 0.98
    """Without `experts`: ask the fewest experts that cover this share of the weight. 1 asks all."""


class Replicas(Placement):
    """How many replicas of a deployment Ray Serve runs."""

    min: PositiveInt = 1
    max: PositiveInt = 1
    """If above `min`, Ray Serve adds and removes replicas by load."""
    target_ongoing_requests: PositiveFloat = 8.0
    """Requests that a replica should process at the same time; the number of replicas follows from it."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}")
        return self


class ServeConfig(Placement):
    """The ensemble behind HTTP; docs/serving.md is the guide."""

    host: str = "127.0.0.1"
    """Address to listen on; by default reachable from this machine only."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 uses a free port."""
    token_hashes: Strings = ()
    """SHA-256, as 64 hex digits, of every accepted bearer token. Without any, no token is required."""
    cors_origins: Strings = ()
    """Web pages that may use the API from a browser, by their origin: `https://example.org`, or `*` for all. The page
    of the service needs no entry."""
    templates: Strings = ("a photo of a {}.",)
    """Templates of labels that come without any. `{}` is replaced by the label."""
    limits: ServeLimits = ServeLimits()
    pruning: PruningConfig = PruningConfig()
    expert_deadline_seconds: PositiveFloat = 10.0
    """An expert that has not answered by then is left out, and the answer is marked as `degraded`."""
    request_deadline_seconds: PositiveFloat = 30.0
    """A request that is not answered by then gets status 503."""
    max_queued_requests: PositiveInt = 64
    """Running and waiting requests of the service, and of every expert. Further ones get status 503 with
    Retry-After."""
    cached_tasks: PositiveInt = 256
    """Most recently used tasks whose weights and class embeddings stay in memory."""
    cached_task_bytes: PositiveInt = 512 << 20
    """Most bytes of all their class embeddings."""
    max_batch_size: PositiveInt = 32
    """Images that go through an expert at once; they may belong to several requests."""
    batch_wait_seconds: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How long an idle expert waits for further images. A busy expert collects the images that arrive meanwhile."""
    device: str = "auto"
    """Device of the experts: `auto`, `cpu`, `cuda`, …."""
    threads_per_expert: PositiveInt = 1
    """CPU threads of one pass through an expert. A pass takes more if cores of its process would be idle."""
    threads_in_process: PositiveInt | None = None
    """With `--in-process`: CPU threads of all experts together; by default the number of cores."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the experts. Answers are always float32."""
    runtime: Literal["torch", "openvino"] = "torch"
    """Library that computes the image towers of experts on CPUs. `openvino` is faster, most of all with `precision:
    bfloat16`; it needs `pip install 'mode_ray[openvino]'`. On GPUs torch computes in any case."""
    experts_per_replica: PositiveInt | None = None
    """On Ray Serve: how many experts form one application, whose replicas hold the models of all of them. Experts of
    one application share equal trunks, and a router asks them in one call. By default all experts if image trunks are
    locked (`train.model.lock`), otherwise one."""
    expert_replicas: Replicas = Replicas()
    router_replicas: Replicas = Replicas(min=2, max=2)
    cpus_per_expert: Annotated[float, Field(ge=0.0)] = 1.0
    """Ray's logical CPUs of one replica. Passes run at the same time, and take more threads, as far as these CPUs
    allow. Several experts of one replica (`experts_per_replica`) have these CPUs together."""
    gpus_per_expert: Annotated[float, Field(ge=0.0)] = 0.0
    """Ray's logical GPUs of one replica, whatever the number of its experts. A fraction lets replicas share a GPU."""
    router_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    task_directory: str | None = None
    """Directory of registered tasks, which all routers share; by default `serving/tasks` of the run."""
    max_stored_tasks: PositiveInt = 10_000
    """If there are more, the oldest are deleted."""

    @model_validator(mode="after")
    def _openvino_on_cpus(self) -> Self:
        if self.runtime == "openvino" and self.precision == "float16":
            raise ValueError("precision: float16 is not for runtime: openvino; set bfloat16 or float32")
        if self.runtime == "openvino" and self.device not in ("auto", "cpu"):
            raise ValueError(f"runtime: openvino is for CPUs, and device is {self.device}: set device: cpu")
        return self

    @model_validator(mode="after")
    def _hashes_are_hashes(self) -> Self:
        for value in self.token_hashes:
            if len(value) != _SHA256_DIGITS or not set(value) <= set("0123456789abcdef"):
                raise ValueError("token_hashes has an entry that is not a SHA-256 in 64 lower-case hex digits")
        return self

    @model_validator(mode="after")
    def _origins_are_origins(self) -> Self:
        for value in self.cors_origins:
            if value != "*" and not _ORIGIN.fullmatch(value):
                raise ValueError(
                    f"cors_origins has {value!r}, which is no origin: write a scheme, a host and, if needed, a port, "
                    "without a path or a slash at the end: https://example.org:8443"
                )
        return self
