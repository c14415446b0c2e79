"""The stages as jobs on a Ray cluster: `ray job submit --working-dir . -- python jobs/<stage>.py`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = pytest.mark.drill

RAY = Path(sys.executable).with_name("ray")
REPOSITORY = Path(__file__).resolve().parents[2]
START_DEADLINE_SECONDS = 90.0
JOB_DEADLINE_SECONDS = 240.0
CAPTIONS = 400


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@pytest.fixture(scope="module")
def dashboard(
    tmp_path_factory: pytest.TempPathFactory, kill_tree: Callable[["subprocess.Popen[bytes]", float], list[str]]
) -> Iterator[str]:
    """Address of a cluster's dashboard, which takes the jobs; the cluster ends with the tests, by its pids."""
    # Ray's sockets lie below it, and the path of a socket may have 107 bytes.
    temporary = tempfile.mkdtemp(prefix="mode-ray-", dir="/tmp")
    port, dashboard_port, agent_port, agent_grpc_port, metrics_port, client_port = free_ports(6)
    options = {
        "--node-ip-address": "127.0.0.1",
        "--port": port,
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": dashboard_port,
        "--dashboard-agent-listen-port": agent_port,
        "--dashboard-agent-grpc-port": agent_grpc_port,
        "--metrics-export-port": metrics_port,
        "--ray-client-server-port": client_port,
        "--num-cpus": 2,
        "--object-store-memory": 200_000_000,
        "--temp-dir": temporary,
    }
    log = tmp_path_factory.mktemp("cluster") / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            # --block: its processes stay below it, where the end of the test finds them.
            [str(RAY), "start", "--head", "--block", *(f"{name}={value}" for name, value in options.items())],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
    address = f"http://127.0.0.1:{dashboard_port}"
    try:
        wait_until_it_answers(f"{address}/api/version", head, log)
        yield address
    finally:
        kill_tree(head, 0.0)
        shutil.rmtree(temporary, ignore_errors=True)


def wait_until_it_answers(url: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310  (http, loopback)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"{url} did not answer:\n{log.read_text()}")


def environment() -> dict[str, str]:
    """Of a shell in which this Python is `python`, as on a cluster's image, and that knows of no other cluster."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "RAY_AUTH_MODE": "disabled", "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, its captions and the place of its run."""
    folder = tmp_path_factory.mktemp("jobs")
    things = ("cat", "dog", "tree", "train", "violin", "harbour", "pizza", "castle")
    captions = [f"{things[number % 8]} number {number} on a table" for number in range(CAPTIONS)]
    pq.write_table(pa.table({"caption": captions}), folder / "captions.parquet")
    values = {
        "run": str(folder / "run"),
        "captions": {"paths": [str(folder / "captions.parquet")]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "embed": {"pool": {"max_actors": 1}},
        "cluster": {"fine": {"centers": 16}, "coarse": {"experts": [2]}, "placement": {"threads": 1}},
        "train": {"experts": 2, "dense_samples": 1024, "batch_size": 32},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def submit(dashboard: str, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Submit a job from the repository, as its README says, and follow it to its end."""
    return subprocess.run(
        [
            *(str(RAY), "job", "submit", "--address", dashboard, "--working-dir", ".", "--"),
            *("python", f"jobs/{script}.py", *arguments),
        ],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=JOB_DEADLINE_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def embedded(dashboard: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return submit(dashboard, "embed", "--config", str(folder / "config.yaml"))


def test_an_embed_job_succeeds_and_its_log_ends_with_what_was_done(
    embedded: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    assert embedded.returncode == 0, embedded.stdout
    assert f"[embed] done: {CAPTIONS} rows of {CAPTIONS}, 0 refused" in embedded.stdout
    assert json.loads((folder / "run/embeddings/manifest.json").read_text())["rows_out"] == CAPTIONS


def test_a_cluster_job_goes_on_from_it(
    dashboard: str, embedded: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    ended = submit(dashboard, "cluster", "--config", str(folder / "config.yaml"), "ray.log_to_driver=false")
    assert ended.returncode == 0, ended.stdout
    assert f"[cluster] done: {CAPTIONS} rows of {CAPTIONS}" in ended.stdout
    assert {file.name for file in (folder / "run/clusters").iterdir()} >= {
        "fine.safetensors",
        "coarse-n2.safetensors",
        "manifest.json",
    }


def test_a_job_that_fails_says_so_by_exit_code_and_message(dashboard: str, folder: Path) -> None:
    ended = submit(dashboard, "pipeline", "--config", str(folder / "config.yaml"), f"captions.paths=[{folder}/absent]")
    assert ended.returncode != 0
    assert f"mode-ray: captions.paths: {folder}/absent: no such file" in ended.stdout
    assert "Traceback" not in ended.stdout
