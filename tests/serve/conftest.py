"""A finished run of three tiny experts, and the service over it in this process, behind a real HTTP server or not."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from serving import EXPERTS, TOPICS, MakeService, ServeUrl, picture, service_of, url_of_service, with_failing
from tiny_run import build_run

from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location


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
    with contextlib.ExitStack() as stack:
        yield lambda **fields: stack.enter_context(service_of(served, tmp_path / "tasks", **fields))


@pytest.fixture
def serve_url(served: ServedRun, tmp_path: Path) -> ServeUrl:
    """Serves over a real socket of the loopback; arguments as of `make_service`, and the experts that are down."""

    @contextlib.contextmanager
    def serve(failing: Mapping[int, Exception | None] | None = None, **fields: object) -> Iterator[str]:
        with (
            service_of(served, tmp_path / "tasks", **fields) as service,
            url_of_service(with_failing(service, failing or {})) as url,
        ):
            yield url

    return serve


@pytest.fixture(scope="session")
def plain_url(served: ServedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with default settings and all experts, shared by the tests that neither change it nor count requests.

    It takes about a second of CPU time to open one.
    """
    with service_of(served, tmp_path_factory.mktemp("plain") / "tasks") as service, url_of_service(service) as url:
        yield url


@pytest.fixture(scope="session")
def images() -> Sequence[bytes]:
    """Five encoded images of different formats."""
    return [picture(seed, kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP"))]
