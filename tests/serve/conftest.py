"""A finished run of three tiny experts, and the service over it in this process, behind a real HTTP server or not."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from serving import EXPERTS, TOPICS, MakeService, ServeUrl, picture, with_failing
from tiny_run import build_run

from mode_ray.config.serve import ServeConfig
from mode_ray.serve.http.api import create_app
from mode_ray.serve.in_process import bind, local_service, url_of, uvicorn_server
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.metrics import prometheus_metrics
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location

START_DEADLINE_SECONDS = 30.0


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose cluster and train stages are done; tests only read it."""
    folder = tmp_path_factory.mktemp("served")
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny").mkdir()
    (folder / "tiny" / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    build_run(folder, EXPERTS, {}, TOPICS, str(folder / "tiny"))
    return folder / "run"


@pytest.fixture(scope="session")
def served(served_folder: Path) -> ServedRun:
    """The run, all experts asked whatever their weight."""
    return ServedRun.load(Location.parse(str(served_folder)))


@pytest.fixture
def make_service(served: ServedRun, tmp_path: Path) -> Iterator[MakeService]:
    """Makes services in this process; arguments replace fields of `serve`."""

    def make(**fields: object) -> EnsembleService:
        settings = {"pruning": {"share": 1.0}, "task_directory": str(tmp_path / "tasks"), **fields}
        config = ServeConfig.model_validate(settings)
        run = served.config.model_copy(update={"serve": config})
        own = ServedRun(**{**served.__dict__, "config": run})
        return stack.enter_context(local_service(own, config, prometheus_metrics()))

    with contextlib.ExitStack() as stack:
        yield make


@pytest.fixture
def serve_url(make_service: MakeService) -> ServeUrl:
    """Serves over a real socket of the loopback; arguments as of `make_service`, and the experts that are down."""

    @contextlib.contextmanager
    def serve(failing: Mapping[int, Exception | None] | None = None, **fields: object) -> Iterator[str]:
        service = with_failing(make_service(**{"port": 0, **fields}), failing or {})
        with bind(service.config) as listening:
            server = uvicorn_server(create_app(lambda: service, service.config))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            deadline = time.monotonic() + START_DEADLINE_SECONDS
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.01)
            try:
                yield url_of(listening)
            finally:
                server.should_exit = True
                thread.join(START_DEADLINE_SECONDS)

    return serve


@pytest.fixture(scope="session")
def images() -> Sequence[bytes]:
    """Five encoded images of different formats."""
    return [picture(seed, kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP"))]
