"""What the tests of serving share."""

import asyncio
import base64
import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mode_ray.config.serve import ServeConfig
from mode_ray.serve.http.api import create_app
from mode_ray.serve.in_process import local_service, uvicorn_server
from mode_ray.serve.listening import bind, url_of
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.expert_client import ExpertDescription
from mode_ray.serve.service.metrics import prometheus_metrics
from mode_ray.serve.service.served_run import ServedRun

TOPICS = ("a cat", "a dog", "a horse", "a bus", "a train", "a tram", "an apple", "a pear", "a plum")
EXPERTS = 3
START_DEADLINE_SECONDS = 30.0
MakeService = Callable[..., EnsembleService]
ServeUrl = Callable[..., "contextlib.AbstractContextManager[str]"]


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """An encoded image of noise, smooth enough for every format."""
    rows = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rows).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def as_json(images: Sequence[bytes]) -> list[dict[str, str]]:
    """Images as a JSON request has them."""
    return [{"base64": base64.b64encode(image).decode()} for image in images]


@contextlib.contextmanager
def service_of(served: ServedRun, tasks: Path, **fields: object) -> Iterator[EnsembleService]:
    """A service in this process that stores its tasks below a folder; `fields` replace fields of `serve`."""
    settings = {"pruning": {"share": 1.0}, "task_directory": str(tasks), "port": 0, **fields}
    config = ServeConfig.model_validate(settings)
    own = replace(served, config=served.config.model_copy(update={"serve": config}))
    with local_service(own, config, prometheus_metrics()) as service:
        yield service


@contextlib.contextmanager
def url_of_service(service: EnsembleService) -> Iterator[str]:
    """Serves over a real socket of the loopback while the block runs."""
    with bind(service.config.host, service.config.port) as listening:
        server = uvicorn_server(create_app(lambda: service, service.config), service.config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield url_of(*listening.getsockname()[:2])
        finally:
            server.should_exit = True
            thread.join(START_DEADLINE_SECONDS)


def half_a_request(url: str) -> socket.socket:
    """A connection whose request never ends."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    head = "POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    connection.sendall(head.encode() + b"{")
    time.sleep(0.2)
    return connection


class Failing:
    """An expert that raises, or does not answer."""

    def __init__(self, expert: int, error: Exception | None) -> None:
        self.id = expert
        self._error = error

    async def describe(self) -> ExpertDescription:
        if self._error is None:
            await asyncio.sleep(3600)
            raise AssertionError("nobody waits that long")
        raise self._error

    async def encode_images(self, images_bhw3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        raise AssertionError(f"it was never described, and got {len(images_bhw3)} images")

    async def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        raise AssertionError(f"it was never described, and got {len(texts)} texts")


def with_failing(service: EnsembleService, failing: Mapping[int, Exception | None]) -> EnsembleService:
    """The service with some experts down: those raise their error, or for None do not answer."""
    clients = dict(service._clients)
    service.set_clients({**clients, **{expert: Failing(expert, error) for expert, error in failing.items()}})
    return service
