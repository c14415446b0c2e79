"""Ray clusters that tests start node by node with `ray start`, on ports of their own, and end by their pids."""

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
START_DEADLINE_SECONDS = 90.0
OBJECT_STORE_BYTES = 200_000_000
_HEAD_LOG = "head.log"

KillTree = Callable[["subprocess.Popen[bytes]", float], list[str]]


@dataclass
class LocalCluster:
    """A head and its worker nodes.

    Attributes:
        dashboard: Address that takes jobs.
        gcs: Address that nodes and drivers join.
        environment: Of every process of the cluster and of its clients.
        head: Its `ray start`, above all its processes.
        start_head: Starts it, with the same options each time.
    """

    dashboard: str
    gcs: str
    environment: dict[str, str]
    folder: Path
    kill_tree: KillTree
    start_head: Callable[[], "subprocess.Popen[bytes]"]
    head: "subprocess.Popen[bytes]" = field(init=False)
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def alive_nodes(self) -> int:
        """Number of nodes that live, the head among them."""
        token = self.environment.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.dashboard}/api/v0/nodes", headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  (http, loopback)
            nodes = json.load(answer)["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in nodes)

    def add_node(
        self, environment: Mapping[str, str] | None = None, /, **options: object
    ) -> "subprocess.Popen[bytes]":
        """Start a worker node with a CPU; it joins by itself some seconds later."""
        (agent_port,) = free_ports(1)
        given = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, **options}
        node = _ray_start(
            {
                "address": self.gcs,
                "node-ip-address": "127.0.0.1",
                "dashboard-agent-listen-port": agent_port,
                **{name.replace("_", "-"): value for name, value in given.items()},
            },
            {**self.environment, **(environment or {})},
            self.folder / f"node-{agent_port}.log",
        )
        self.nodes.append(node)
        return node

    def kill_node(self, node: "subprocess.Popen[bytes]") -> None:
        """Kill a node with all its processes at once, as when its machine is taken away."""
        self.kill_tree(node, 0.0)
        self.nodes.remove(node)

    def kill_head(self) -> None:
        """Kill the head with all its processes at once. The nodes live on for a while."""
        self.kill_tree(self.head, 0.0)

    def run_head(self) -> None:
        """Start the head, or start it again, and wait until its dashboard answers."""
        self.head = self.start_head()
        _wait_until_it_answers(self)


@contextmanager
def local_cluster(
    folder: Path,
    kill_tree: KillTree,
    environment: Mapping[str, str] | None = None,
    head_environment: Mapping[str, str] | None = None,
    /,
    **head_options: object,
) -> Iterator[LocalCluster]:
    """Start a head and end it, and the nodes that joined it, afterwards.

    Args:
        folder: Where the logs go.
        kill_tree: The fixture of that name.
        environment: Further variables of all processes.
        head_environment: Further variables of the head's processes.
        head_options: Of `ray start --head`, with `_` for `-`.
    """
    # Ray's sockets lie below it, and the path of a socket may have 107 bytes.
    temporary = tempfile.mkdtemp(prefix="mode-ray-", dir="/tmp")
    port, dashboard_port, agent_port, agent_grpc_port, metrics_port, client_port = free_ports(6)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard_port,
        "dashboard-agent-listen-port": agent_port,
        "dashboard-agent-grpc-port": agent_grpc_port,
        "metrics-export-port": metrics_port,
        "ray-client-server-port": client_port,
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": temporary,
        **{name.replace("_", "-"): value for name, value in head_options.items()},
    }
    shell = shell_environment(environment)
    gcs = f"127.0.0.1:{options['port']}"

    def start_head() -> "subprocess.Popen[bytes]":
        # Of the head before, which a new machine would not have: Ray refuses to start beside it.
        Path(str(options["temp-dir"]), "ray_current_cluster").unlink(missing_ok=True)
        return _ray_start({"head": None, **options}, {**shell, **(head_environment or {})}, folder / _HEAD_LOG)

    cluster = LocalCluster(f"http://127.0.0.1:{dashboard_port}", gcs, shell, folder, kill_tree, start_head)
    try:
        cluster.run_head()
        yield cluster
    finally:
        for process in (*cluster.nodes, cluster.head):
            kill_tree(process, 0.0)
        shutil.rmtree(temporary, ignore_errors=True)


def shell_environment(further: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a shell in which this Python is `python`, as on a cluster's image, and that knows of no other cluster."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    path = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "RAY_AUTH_MODE": "disabled", "PATH": path, **(further or {})}


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


def _ray_start(options: Mapping[str, object], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    flags = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
    with log.open("ab") as output:
        # --block: its processes stay below it, where the end of the test finds them.
        return subprocess.Popen(
            [str(RAY), "start", "--block", *flags], stdout=output, stderr=subprocess.STDOUT, env=dict(environment)
        )


def _wait_until_it_answers(cluster: LocalCluster) -> None:
    """Poll until the dashboard knows of the head."""
    log = cluster.folder / _HEAD_LOG
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        assert cluster.head.poll() is None, log.read_text()
        try:
            if cluster.alive_nodes():
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError, KeyError):
            pass  # it is on its way
        time.sleep(0.2)
    raise AssertionError(f"{cluster.dashboard} did not answer:\n{log.read_text()}")
