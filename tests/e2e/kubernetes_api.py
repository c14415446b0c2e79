"""A Kubernetes API with KubeRay's part, for its autoscaler: the pods of workers are Ray nodes of this machine.

It serves one RayCluster and its pods over HTTPS. After every change of the RayCluster, it does what KubeRay does: it
deletes the pods in `workersToDelete`, and creates pods until each group has its number of replicas.
"""

import copy
import ipaddress
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from http_server import serving
from local_cluster import LocalCluster

HEAD_POD, HEAD_GROUP = "head", "headgroup"


@dataclass
class Pod:
    """A pod of a group; one without a process waits for a machine."""

    name: str
    group: str
    process: "subprocess.Popen[bytes] | None" = None

    def as_object(self, cluster: str) -> dict[str, Any]:
        """As the API returns it."""
        kind = "head" if self.name == HEAD_POD else "worker"
        state = "running" if self.name == HEAD_POD or self.process is not None else "waiting"
        labels = {"ray.io/cluster": cluster, "ray.io/node-type": kind, "ray.io/group": self.group}
        statuses = [{"name": f"ray-{kind}", "state": {state: {}}}]
        return {
            "metadata": {"name": self.name, "labels": labels, "resourceVersion": "1"},
            "spec": {"containers": [{"name": f"ray-{kind}"}]},
            "status": {"podIP": "127.0.0.1", "containerStatuses": statuses},
        }


@dataclass
class KubeRay:
    """One RayCluster and its pods.

    Attributes:
        ray_cluster: The object, as the chart renders it.
        nodes: Where the pods' nodes join; set when its head runs.
        capacity: The most machines that a group can get; other groups get as many as they ask for.
        groups_by_time: The groups of the pods that were created, in order.
    """

    ray_cluster: dict[str, Any]
    capacity: Mapping[str, int]
    nodes: LocalCluster | None = None
    pods: dict[str, Pod] = field(default_factory=lambda: {HEAD_POD: Pod(HEAD_POD, HEAD_GROUP)})
    groups_by_time: list[str] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        return str(self.ray_cluster["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.ray_cluster["metadata"]["namespace"])

    def get(self, path: str) -> dict[str, Any]:
        """The object or the list at a path.

        Raises:
            KeyError: There is none.
        """
        with self._lock:
            if path == f"/apis/ray.io/v1/namespaces/{self.namespace}/rayclusters/{self.name}":
                return copy.deepcopy(self.ray_cluster)
            if path == f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=ray.io/cluster%3D{self.name}":
                return {
                    "metadata": {"resourceVersion": "1"},
                    "items": [pod.as_object(self.name) for pod in self.pods.values()],
                }
        raise KeyError(path)

    def patch(self, path: str, patches: list[dict[str, Any]]) -> dict[str, Any]:
        """Apply replacements of a JSON patch to the RayCluster, and create and delete its pods."""
        with self._lock:
            assert path.endswith(f"/rayclusters/{self.name}"), path
            for patch in patches:
                assert patch["op"] == "replace", patch
                *parents, last = patch["path"].strip("/").split("/")
                place: Any = self.ray_cluster
                for key in parents:
                    place = place[int(key) if isinstance(place, list) else key]
                place[last] = patch["value"]
            self._reconcile()
            return copy.deepcopy(self.ray_cluster)

    def _reconcile(self) -> None:
        for group in self.ray_cluster["spec"]["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], group
            for name in group.get("scaleStrategy", {}).get("workersToDelete", []):
                if (pod := self.pods.pop(name, None)) and pod.process is not None:
                    self._nodes.kill_node(pod.process)
            own = [pod for pod in self.pods.values() if pod.group == group["groupName"]]
            for _ in range(len(own), group["replicas"]):
                self._create(group)

    def _create(self, group: Mapping[str, Any]) -> None:
        name = str(group["groupName"])
        pod = Pod(f"{self.name}-{name}-{len(self.groups_by_time)}", name)
        self.groups_by_time.append(name)
        machines = sum(other.group == name and other.process is not None for other in self.pods.values())
        if machines < self.capacity.get(name, machines + 1):
            pod.process = self._nodes.add_node(
                {"RAY_CLOUD_INSTANCE_ID": pod.name, "RAY_NODE_TYPE_NAME": name}, **start_options(group)
            )
        self.pods[pod.name] = pod

    @property
    def _nodes(self) -> LocalCluster:
        assert self.nodes is not None, "its head does not run yet"
        return self.nodes


def start_options(group: Mapping[str, Any]) -> dict[str, object]:
    """The options of `ray start` that KubeRay derives from a group."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    derived = {"num-cpus": limits["cpu"], "num-gpus": limits.get("nvidia.com/gpu", "0"), **group["rayStartParams"]}
    return {
        **{name.replace("-", "_"): value for name, value in derived.items()},
        "labels": ",".join(f"{name}={value}" for name, value in group["labels"].items()),
    }


class Handler(BaseHTTPRequestHandler):
    kuberay: KubeRay

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        try:
            self._answer(200, self.kuberay.get(self.path))
        except KeyError:
            self._answer(404, {"message": f"not found: {self.path}"})

    def do_PATCH(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, self.kuberay.patch(self.path, json.loads(body)))

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


@contextmanager
def kubernetes_api(kuberay: KubeRay, folder: Path) -> Iterator[dict[str, str]]:
    """The API on a free port; yields the variables by which the autoscaler of a pod finds it and logs in."""
    certificate, key = _certificate(folder)
    handler = type("BoundHandler", (Handler,), {"kuberay": kuberay})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # Callers have to show the certificate that the variables name.
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_port),
            "RAY_KUBERAY_CLIENT_CERT_PATH": str(certificate),
            "RAY_KUBERAY_CLIENT_KEY_PATH": str(key),
            "RAY_KUBERAY_CA_CERT_PATH": str(certificate),
        }


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(encoding))
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return folder / "certificate.pem", folder / "key.pem"
