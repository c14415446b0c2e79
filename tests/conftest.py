"""Shared fixtures: one Ray for the whole session, a real S3 server, buckets, the larger data sets."""

import gc
import os
import resource
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from fault_proxy import Fault, fault_proxy
from run_of_before import unpack_run_of_before

from mode_ray.util.memory import return_freed_memory


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


S3_ENDPOINT = f"http://127.0.0.1:{_free_port()}"
S3_START_DEADLINE_SECONDS = 60.0
S3_STOP_DEADLINE_SECONDS = 10.0
# Of one pytest process, Ray's and other child processes not counted. Torch, Ray and the rest take 1.2 GB to import.
# The peak varies with the files that a process gets.
MOST_RESIDENT_BYTES = 3_400_000_000

# Ray, torch and arrow read these once, at import or at their first call, and Ray's workers inherit them: they
# are set here, before any test module is imported.
_REMOVED = (
    "RAY_ADDRESS",
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL": S3_ENDPOINT,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",  # pragma: allowlist secret
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}
for _name in _REMOVED:
    os.environ.pop(_name, None)
os.environ.update(_ENVIRONMENT)


# No collection of garbage until the tests run: imports make two million objects, and all of them stay.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Collections start again, and leave out what the imports have made."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _bounded_memory() -> Iterator[None]:
    """Fails the session of a process that needed too much memory: as an error after its last test.

    A teardown error is the one failure that pytest-xdist passes on from the end of a worker's session.
    """
    yield
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak_bytes > MOST_RESIDENT_BYTES:
        pytest.fail(
            f"this pytest process needed up to {peak_bytes / 1e9:.1f} GB of memory, and {MOST_RESIDENT_BYTES / 1e9:g} "
            "GB is the limit: some test or fixture keeps what it opened",
            pytrace=False,
        )


@pytest.fixture(scope="module", autouse=True)
def _no_freed_memory() -> Iterator[None]:
    """Returns what a file's tests have freed, 0.5 GB where they make large models: only what is kept adds up."""
    yield
    return_freed_memory()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of its own on this machine, shared by all tests that ask for it."""
    # Imported here: most tests need no Ray, and should not wait for it.
    import ray
    from ray.data import DataContext

    # "local": without it Ray joins whatever cluster happens to run on the developer's machine.
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,  # Ray grants it like a real one
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
    )
    DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a real S3 server (moto) on the loopback; the AWS_* variables point at it."""
    log = tmp_path_factory.mktemp("s3") / "server.log"
    port = S3_ENDPOINT.rsplit(":", 1)[1]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_answers(server, log)
        yield S3_ENDPOINT
    finally:
        server.terminate()
        try:
            server.wait(S3_STOP_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture
def bucket(s3_server: str) -> str:
    """`s3://name` of a fresh, empty bucket."""
    name = f"mode-ray-{secrets.token_hex(4)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def s3_requests(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Counter[str]]]:
    """Returns the requests of this process to the S3 server since the last call, by method."""
    from mode_ray import storage

    counts: Counter[str] = Counter()

    def count(method: str, _path: str, _earlier: int) -> Fault | None:
        counts[method] += 1
        return None

    def since() -> Counter[str]:
        taken = counts.copy()
        counts.clear()
        return taken

    with fault_proxy(s3_server, count) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage._filesystem.cache_clear()
        yield since
    storage._filesystem.cache_clear()


@pytest.fixture(scope="session")
def run_of_before() -> Path:
    """The folder of a small finished run of version 0.1.0, `run` in it; read only (tests/fixtures/README.md)."""
    return unpack_run_of_before()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the larger real data sets; the test is skipped where there is none."""
    named = os.environ.get("MODE_RAY_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}: set MODE_RAY_SHARED_DATA to run this test")
    return folder


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + S3_START_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{S3_ENDPOINT}/moto-api/", timeout=2).close()  # noqa: S310  (http, loopback)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the S3 server at {S3_ENDPOINT} did not come up:\n{log.read_text()}")
