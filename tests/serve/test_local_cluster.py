"""A run served on this machine: who can use the Ray behind it, from this machine and from another one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil
import pytest
from listeners import Listener, listeners_below
from serving_process import STOP_DEADLINE_SECONDS, Serving, free_port, serving_of
from tiny_run import build_run

# Starts `mode-ray serve` and a dozen commands, which takes minutes on two cores.
pytestmark = [pytest.mark.drill, pytest.mark.slow]

COMMAND_DEADLINE_SECONDS = 300.0
MOST_REFUSAL_SECONDS = 10.0  # a second where the machine has nothing else to do
# Connects to every [host, port], and prints what came of it by "host:port".
_CONNECT = """
import errno, json, socket, sys
found = {}
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), timeout=3).close()
        found[f"{host}:{port}"] = "open"
    except OSError as error:
        found[f"{host}:{port}"] = errno.errorcode.get(error.errno, str(error))
print(json.dumps(found))
"""
# Calls the gRPC server of each [host, port], without a token and with that of the standard input; prints the statuses.
_CALL_REPLICA = """
import json, sys, grpc
token = sys.stdin.read()
found = {}
for host, port in json.loads(sys.argv[1]):
    call = grpc.insecure_channel(f"{host}:{port}").unary_unary("/ray.serve.ASGIService/HandleRequest")
    for name, headers in (("without", ()), ("with", (("authorization", f"Bearer {token}"),))):
        try:
            call(b"", timeout=10, metadata=headers)
            found[f"{host}:{port} {name}"] = "OK"
        except grpc.RpcError as error:
            found[f"{host}:{port} {name}"] = error.code().name
print(json.dumps(found))
"""
_RUN_CODE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("ran", ray.get(ray.remote(lambda: 42).remote()))
"""


class AnotherMachine(Protocol):
    def __call__(self, script: str, targets: list[tuple[str, int]], given: str = "") -> dict[str, str]:
        """Run a script with hosts and ports, and a text as its input."""


class Cluster(NamedTuple):
    serving: Serving
    environment: dict[str, str]
    state: Path
    home: Path

    @property
    def token_file(self) -> Path:
        (file,) = self.state.rglob("*.token")
        return file

    @property
    def token(self) -> str:
        return self.token_file.read_text()

    @property
    def listeners(self) -> list[Listener]:
        return listeners_below(self.serving.process.pid)

    @property
    def replica_ports(self) -> list[int]:
        """Ray Serve's replicas listen for each other on all interfaces, which no setting changes; see replica.py."""
        return [entry.port for entry in self.listeners if not entry.is_loopback]

    @property
    def gcs(self) -> str:
        return next(f"127.0.0.1:{entry.port}" for entry in self.listeners if entry.process == "gcs_server")

    def run(self, *command: str, **further: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of another shell of the same user, with further variables."""
        return subprocess.run(
            [sys.executable, *command],
            env=self.environment | further,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_DEADLINE_SECONDS,
            check=False,
        )

    def mode_ray(self, *arguments: str, **further: str) -> "subprocess.CompletedProcess[str]":
        return self.run("-m", "mode_ray", *arguments, **further)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`mode-ray serve` as a user starts it: without any of the variables that the tests set for Ray."""
    folder = tmp_path_factory.mktemp("served")
    settings = {"port": free_port(), "request_deadline_seconds": 2.0, "expert_deadline_seconds": 1.0}
    config = build_run(folder, 2, settings | {"router_replicas": {"min": 1, "max": 1}})
    state, home = folder / "state", folder / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"XDG_STATE_HOME": str(state), "HOME": str(home)}
    with serving_of(config, environment) as serving:
        yield Cluster(serving, environment, state, home)


@pytest.fixture(scope="module")
def another_machine() -> Iterator[AnotherMachine]:
    """Runs a script on hosts and ports on another machine: a network namespace with a cable to this one."""
    name, ours, theirs = f"mr{os.getpid()}", f"mra{os.getpid()}", f"mrb{os.getpid()}"
    net = f"10.213.{os.getpid() % 256}"
    ip = shutil.which("ip")
    if ip is None:
        pytest.skip("no `ip` command: network namespaces cannot be made")
    inside = [ip, "netns", "exec", name]
    steps = [
        [ip, "netns", "add", name],
        [ip, "link", "add", ours, "type", "veth", "peer", "name", theirs],
        [ip, "link", "set", theirs, "netns", name],
        [ip, "addr", "add", f"{net}.1/24", "dev", ours],
        [ip, "link", "set", ours, "up"],
        [*inside, ip, "addr", "add", f"{net}.2/24", "dev", theirs],
        [*inside, ip, "link", "set", theirs, "up"],
        [*inside, ip, "route", "add", "default", "via", f"{net}.1"],
    ]
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"network namespaces cannot be made: {' '.join(step)}: {done.stderr.strip()}")

        def run(script: str, targets: list[tuple[str, int]], given: str = "") -> dict[str, str]:
            command = [*inside, sys.executable, "-c", script, json.dumps(targets)]
            done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True)
            found: dict[str, str] = json.loads(done.stdout)
            return found

        yield run
    finally:
        subprocess.run([ip, "link", "del", ours], capture_output=True, check=False)
        subprocess.run([ip, "netns", "del", name], capture_output=True, check=False)


def own_addresses() -> list[str]:
    """The addresses by which another machine reaches this one."""
    return [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]


class TestFromAnotherMachine:
    def test_all_ports_but_those_of_serves_replicas_are_on_the_loopback_interface(self, cluster: Cluster) -> None:
        listeners = cluster.listeners
        assert {"gcs_server", "raylet"} <= {entry.process for entry in listeners}
        open_to_all = sorted(entry.process for entry in listeners if not entry.is_loopback)
        assert open_to_all == [
            "ray::ServeReplica:expert-0:Expert",
            "ray::ServeReplica:expert-1:Expert",
            "ray::ServeReplica:router:Router",
        ]

    def test_connections_to_the_others_are_refused(self, cluster: Cluster, another_machine: AnotherMachine) -> None:
        with socket.create_server(("0.0.0.0", 0)) as everywhere:  # noqa: S104  (shows that the cable works)
            port = everywhere.getsockname()[1]
            found = another_machine(_CONNECT, [(host, port) for host in own_addresses()])
        assert found
        assert set(found.values()) == {"open"}
        ports = {entry.port for entry in cluster.listeners if entry.is_loopback}
        assert len(ports) >= 8
        found = another_machine(_CONNECT, [(host, port) for host in own_addresses() for port in ports])
        assert set(found.values()) == {"ECONNREFUSED"}, found

    def test_replicas_refuse_calls_without_the_token(self, cluster: Cluster, another_machine: AnotherMachine) -> None:
        targets = [(own_addresses()[0], port) for port in cluster.replica_ports]
        found = another_machine(_CALL_REPLICA, targets, cluster.token)
        assert {code for call, code in found.items() if call.endswith("without")} == {"UNAUTHENTICATED"}, found
        assert "UNAUTHENTICATED" not in {code for call, code in found.items() if call.endswith("with")}, found


class TestWithoutTheToken:
    def test_the_dashboard_answers_401(self, cluster: Cluster) -> None:
        url = f"{cluster.serving.dashboard}/api/serve/applications/"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=30)  # noqa: S310  (http, loopback)
        assert refused.value.code == 401
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {cluster.token}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            assert answer.status == 200

    def test_ray_runs_no_code(self, cluster: Cluster) -> None:
        # The last variable has Ray take 127.0.0.1 as it is given.
        loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            refused = cluster.run("-c", _RUN_CODE, cluster.gcs, **wrong, **loopback)
            assert refused.returncode != 0
            assert "ran 42" not in refused.stdout
            assert re.search(r"(?i)authentic", refused.stdout), refused.stdout
        right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token_file)}
        ran = cluster.run("-c", _RUN_CODE, cluster.gcs, **right, **loopback)
        assert "ran 42" in ran.stdout, ran.stdout

    def test_a_command_of_another_user_is_refused_in_one_sentence(self, cluster: Cluster, tmp_path: Path) -> None:
        address = cluster.serving.dashboard
        refused = cluster.mode_ray("serve", "remove", "1", "--address", address, XDG_STATE_HOME=str(tmp_path))
        assert refused.returncode == 2
        assert f"mode-ray: {address}: the cluster refuses access without its token: " in refused.stdout
        assert "Traceback" not in refused.stdout


class TestOwnCommands:
    def test_serve_remove_and_add_find_the_token(self, cluster: Cluster) -> None:
        for verb, outcome in (("remove", "expert 1 is out of the ensemble"), ("add", "expert 1 is in the ensemble")):
            done = cluster.mode_ray("serve", verb, "1", "--address", cluster.serving.dashboard)
            assert done.returncode == 0, done.stdout
            assert outcome in done.stdout

    def test_an_expert_that_the_run_does_not_have_is_refused_at_once(self, cluster: Cluster) -> None:
        began = time.monotonic()
        refused = cluster.mode_ray("serve", "add", "9", "--address", cluster.serving.dashboard)
        assert refused.returncode == 2
        assert "Traceback" not in refused.stdout
        assert "expert 9" in refused.stdout
        assert time.monotonic() - began < MOST_REFUSAL_SECONDS


class TestSecrecy:
    def test_the_token_is_in_no_argument_no_variable_and_no_log(self, cluster: Cluster) -> None:
        token = cluster.token
        processes = [psutil.Process(cluster.serving.process.pid), *cluster.serving.processes()]
        arguments = [" ".join(process.cmdline()) for process in processes]
        variables = ["\n".join(process.environ().values()) for process in processes]
        sessions = {found for line in arguments for found in re.findall(r"/\S+/session_\d[^/\s]+", line)}
        assert len(sessions) == 1
        files = [file for file in Path(sessions.pop()).rglob("*") if file.is_file()]
        assert any(file.name.startswith("gcs_server") for file in files)
        assert [text for text in (*arguments, *variables) if token in text] == []
        assert [file for file in files if token.encode() in file.read_bytes()] == []

    def test_ray_writes_nothing_into_the_home_directory(self, cluster: Cluster) -> None:
        assert not (cluster.home / ".ray").exists()

    def test_the_token_is_deleted_at_the_end(self, cluster: Cluster) -> None:
        folder = cluster.token_file.parent
        cluster.serving.process.send_signal(signal.SIGINT)
        assert cluster.serving.process.wait(STOP_DEADLINE_SECONDS) == 0
        assert list(folder.iterdir()) == []
