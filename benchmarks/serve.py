"""An ensemble of four experts answers over HTTP at 0.7 and more of the speed that it has in a Python loop, 0.4 on Ray.

The loop decodes, prepares and encodes 32 images with every expert in turn; over HTTP requests hold 32 images. Single
images come from 1, 8 and 32 clients; there the peers are LitServe, with its dynamic batches, and plain FastAPI with a
thread pool. They serve the same models and labels with as many torch threads, but route nothing, check nothing and
know no other task. One server runs at a time, ours and the peers' in turn, and every round starts each of them anew.
Weights are random: what an image costs does not depend on them. LitServe is not among our dependencies: name the
Python of an environment that has it by MODE_RAY_PEER_PYTHON, or it is left out, and said so.
"""

import base64
import contextlib
import functools
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from frame import Timings, alternate, alternate_all, arguments, finish
from serve_run import LABELS, PlainEnsemble, build_run, pictures, tiny_architecture

from mode_ray.serve.service.served_run import ServedRun

THREADS = 2
IMAGES = 32
CLIENTS = (1, 8, 32)
LOAD_SECONDS, QUICK_LOAD_SECONDS = 20.0, 2.0
_EVERYBODY = {"pruning.share": 1.0}
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0

Server = Callable[[ServedRun, Mapping[str, object]], AbstractContextManager[str]]


@contextlib.contextmanager
def in_process(served: ServedRun, settings: Mapping[str, object]) -> Iterator[str]:
    """`mode-ray serve RUN --in-process` as a process of its own; yields its address."""
    port = _free_port()
    fields = {"threads_in_process": THREADS, "port": port, **settings}
    command = ["serve", served.run.uri, "--in-process", *(f"serve.{key}={value}" for key, value in fields.items())]
    program = "import sys; from mode_ray.cli import main; sys.exit(main())"
    with _running([sys.executable, "-c", program, *command], port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def on_ray_serve(served: ServedRun, settings: Mapping[str, object]) -> Iterator[str]:
    """`mode-ray serve RUN`, with one router, as a process that starts Ray and everything else; yields its address.

    Every expert has a process and a torch thread of its own: as many threads work as cores are left to them.
    """
    port = _free_port()
    router = {"router_replicas.min": 1, "router_replicas.max": 1, "router_cpus": 0.5, "cpus_per_expert": 0.5}
    fields = {"threads_per_expert": 1, "port": port, **router, **settings}
    command = ["serve", served.run.uri, *(f"serve.{key}={value}" for key, value in fields.items())]
    program = "import sys; from mode_ray.cli import main; sys.exit(main())"
    with _running([sys.executable, "-c", program, *command], port):
        _wait_until_ready(f"http://127.0.0.1:{port}", served.n)
        yield f"http://127.0.0.1:{port}"


def together_on_ray_serve(served: ServedRun, settings: Mapping[str, object]) -> AbstractContextManager[str]:
    """The same with all experts in one process, which has as many CPUs as threads."""
    return on_ray_serve(served, {"experts_per_replica": served.n, "cpus_per_expert": THREADS, **settings})


def compiled(server: Server, precision: str = "float32") -> Server:
    """The same with towers that OpenVINO compiles."""
    return lambda served, settings: server(served, {"runtime": "openvino", "precision": precision, **settings})


# Every way in which we serve, by the name of its result `<name>_vs_loop`; each is started and asked alike.
OURS: dict[str, Server] = {
    "in_process": in_process,
    "in_process_openvino": compiled(in_process),
    "serve": on_ray_serve,
    "serve_together": together_on_ray_serve,
    "serve_together_openvino": compiled(together_on_ray_serve),
    "serve_together_bfloat16": compiled(together_on_ray_serve, "bfloat16"),
}


@contextlib.contextmanager
def peer(name: str, interpreter: str, served: ServedRun) -> Iterator[str]:
    """A peer of `serve_peers.py` as a process; yields its address."""
    port = _free_port()
    script = Path(__file__).with_name("serve_peers.py")
    with _running([interpreter, str(script), name, served.run.uri, str(port), str(THREADS)], port):
        yield f"http://127.0.0.1:{port}"


def peers() -> dict[str, str]:
    """The interpreter of every peer that there is, by name."""
    python = os.environ.get("MODE_RAY_PEER_PYTHON")
    return {"fastapi": sys.executable, **({"litserve": python} if python else {})}


@dataclass(frozen=True)
class Load:
    """What clients met.

    Attributes:
        latencies: Seconds of every request.
        seconds: From the first request to the last answer.
    """

    latencies: Sequence[float]
    seconds: float

    @property
    def requests_per_second(self) -> float:
        """Of all clients together."""
        return len(self.latencies) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Of the latencies."""
        return 1e3 * float(np.percentile(self.latencies, percent))


@dataclass(frozen=True)
class Loads:
    """The loads of one server, one a round."""

    rounds: Sequence[Load]

    @property
    def requests_per_second(self) -> float:
        """Median over the rounds."""
        return statistics.median(load.requests_per_second for load in self.rounds)

    def percentile_ms(self, percent: float) -> float:
        """Median over the rounds."""
        return statistics.median(load.percentile_ms(percent) for load in self.rounds)

    @property
    def figures(self) -> dict[str, object]:
        """As the details show them."""
        return {
            "requests_per_second": round(self.requests_per_second, 2),
            "requests_per_second_by_round": [round(load.requests_per_second, 2) for load in self.rounds],
            "p50_ms": round(self.percentile_ms(50), 2),
            "p99_ms": round(self.percentile_ms(99), 2),
        }


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    rounds = options.repeats or (1 if options.quick else 5)
    images = pictures(IMAGES)
    with tempfile.TemporaryDirectory(prefix="mode-ray-serve-") as name:
        folder = Path(name)
        tiny = tiny_architecture(folder / "tiny")
        details: dict[str, object] = {"quick": options.quick, "torch_threads": THREADS}
        (folder / "towers").mkdir()
        results = measure(build_run(folder / "towers", tiny), images, rounds, QUICK_LOAD_SECONDS, details, "tiny")
        if not options.quick:
            # The demo's towers are shown beside the claim, which is about models that take some time.
            details["tiny_towers"] = dict(results)
            (folder / "large").mkdir()
            results = measure(build_run(folder / "large", "ViT-B-32"), images, rounds, LOAD_SECONDS, details, "b32")
    finish("serve", results, details)


def measure(
    served: ServedRun, images: Sequence[bytes], rounds: int, load_seconds: float, details: dict[str, object], name: str
) -> dict[str, float]:
    """All figures of one run."""
    results = compare_with_loop(served, images, rounds)
    results["top1_vs_full"] = top1_vs_full(served, images, load_seconds)
    found, timings = compare_under_load(served, images, rounds, load_seconds)
    details["peers_left_out"] = [] if "litserve" in found else ["litserve: MODE_RAY_PEER_PYTHON is not set"]
    for way, loads in found.items():
        details[f"{name}_{way}"] = {str(clients): of_clients.figures for clients, of_clients in loads.items()}
    for way in OURS:
        results[f"{way}_p50_ms_at_1_client"] = found[way][1].percentile_ms(50)
        results[f"{way}_p99_ms_at_8_clients"] = found[way][8].percentile_ms(99)
        results[f"{way}_requests_per_second_at_32_clients"] = found[way][32].requests_per_second
    results["p99_ms_at_8_clients"] = results["in_process_p99_ms_at_8_clients"]
    # Like with like: both compute with torch.
    on_ray_with_torch = timings.fastest("serve", "serve_together")
    results["ray_vs_in_process_at_32_clients"] = timings.speed_up("in_process", of=on_ray_with_torch)
    best_peer = timings.fastest(*peers())
    # The peers compute in float32.
    in_float32 = [way for way in OURS if not way.endswith("bfloat16")]
    for result, prefix in (("vs_peer_at_32_clients", "in_process"), ("vs_peer_at_32_clients_on_ray", "serve")):
        ours = timings.fastest(*(way for way in in_float32 if way.startswith(prefix)))
        results[result] = timings.speed_up(best_peer, of=ours)
    results["vs_peer_at_32_clients_on_ray_in_bfloat16"] = timings.speed_up(best_peer, of="serve_together_bfloat16")
    return results


def compare_with_loop(served: ServedRun, images: Sequence[bytes], rounds: int) -> dict[str, float]:
    """The time of a request with all images over that of the loop, of every way of ours."""
    results: dict[str, float] = {}
    loop = PlainEnsemble(served, THREADS)
    for way, server in OURS.items():
        with server(served, _EVERYBODY) as url:
            ask = Batch(url, register(url), images)
            results[f"{way}_max_abs_difference"] = float(np.abs(ask.scores() - loop.score(images)).max())
            timings = alternate(ask, {"loop": lambda: loop.score(images)}, rounds)
        results[f"{way}_vs_loop"] = timings.speed_up("loop")
    return results


def compare_under_load(
    served: ServedRun, images: Sequence[bytes], rounds: int, load_seconds: float
) -> tuple[dict[str, dict[int, Loads]], Timings]:
    """Single images from so many clients, ours and the peers in turn: loads, and seconds a request at 32 clients."""
    found: dict[str, dict[int, list[Load]]] = {}

    def ask(name: str, url: str, path: str, bodies: Sequence[bytes], kind: str) -> float:
        for clients in CLIENTS:
            met = load(url, path, bodies, clients, load_seconds, kind)
            found.setdefault(name, {}).setdefault(clients, []).append(met)
        return 1 / met.requests_per_second

    def ask_ours(way: str) -> float:
        with OURS[way](served, _EVERYBODY) as url:
            return ask(way, url, f"/v1/classify?task={register(url)}", images, "image/jpeg")

    def ask_peer(name: str) -> float:
        with peer(name, peers()[name], served) as url:
            bodies, kind = _as_taken_by(name, images)
            _post(_connect(url), "/predict", bodies[0], kind)  # ours have answered one request, too
            return ask(name, url, "/predict", bodies, kind)

    contenders = {
        **{way: functools.partial(ask_ours, way) for way in OURS},
        **{name: functools.partial(ask_peer, name) for name in peers()},
    }
    timings = alternate_all(contenders, rounds, warm_up=False)
    return {name: {clients: Loads(of) for clients, of in loads.items()} for name, loads in found.items()}, timings


def top1_vs_full(served: ServedRun, images: Sequence[bytes], load_seconds: float) -> float:
    """Requests a second with the best expert alone, over those with all, at 8 clients."""
    rates = []
    for settings in ({"pruning.experts": 1}, {"pruning.share": 1.0}):
        with in_process(served, settings) as url:
            path = f"/v1/classify?task={register(url)}"
            load(url, path, images, 8, load_seconds / 4)
            rates.append(load(url, path, images, 8, load_seconds).requests_per_second)
    return rates[0] / rates[1]


def _as_taken_by(peer: str, images: Sequence[bytes]) -> tuple[Sequence[bytes], str]:
    """Bodies of requests and their type: LitServe hands its models forms or JSON, not the body."""
    if peer == "litserve":
        texts = [base64.b64encode(image).decode() for image in images]
        return [json.dumps({"image": text}).encode() for text in texts], "application/json"
    return images, "image/jpeg"


class Batch:
    """One request with all images, asked again and again, each time over a connection of its own.

    While the loop has its turn, servers close one that is idle.
    """

    def __init__(self, url: str, task: str, images: Sequence[bytes]) -> None:
        encoded = [{"base64": base64.b64encode(image).decode()} for image in images]
        self._body = json.dumps({"images": encoded, "task": task}).encode()
        self._url = url

    def __call__(self) -> bytes:
        """Ask."""
        with contextlib.closing(_connect(self._url)) as connection:
            return _post(connection, "/v1/classify", self._body, "application/json")

    def scores(self) -> np.ndarray:
        """The scores [images, labels], in the order of the labels."""
        results = json.loads(self())["results"]
        by_label = [dict(zip(result["labels"], result["scores"], strict=True)) for result in results]
        return np.array([[scores[label] for label in LABELS] for scores in by_label])


def load(url: str, path: str, bodies: Sequence[bytes], clients: int, seconds: float, kind: str = "image/jpeg") -> Load:
    """Single images from several clients, each with one request at a time, all begun within so many seconds."""
    latencies: list[float] = []
    failures: list[Exception] = []
    start = time.perf_counter()
    end = start + seconds

    def client(number: int) -> None:
        connection = _connect(url)
        try:
            while (began := time.perf_counter()) < end:
                _post(connection, path, bodies[number % len(bodies)], kind)
                latencies.append(time.perf_counter() - began)
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures or not latencies:
        raise RuntimeError(f"{url}: {len(failures)} of {clients} clients failed: {failures[:1]}")
    return Load(latencies, time.perf_counter() - start)


def register(url: str) -> str:
    """Register the labels; the first request computes every expert's class embeddings."""
    connection = _connect(url)
    answer = json.loads(_post(connection, "/v1/tasks", json.dumps({"labels": LABELS}).encode(), "application/json"))
    task: str = answer["task"]
    _post(connection, f"/v1/classify?task={task}", pictures(1)[0], "image/jpeg")
    return task


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_START_SECONDS)


def _post(connection: http.client.HTTPConnection, path: str, body: bytes, kind: str) -> bytes:
    connection.request("POST", path, body, {"Content-Type": kind})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {content[:300]!r}")
    return content


@contextlib.contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    """A server as a process, from the moment that it takes connections to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command}: did not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its workers behind


def _wait_until_ready(url: str, experts: int) -> None:
    """Ray Serve's proxy takes connections before the applications behind it are up."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
            connection = _connect(url)
            connection.request("GET", "/v1/ready")
            available = json.loads(connection.getresponse().read())["experts"]
            if sum(available.values()) == experts:
                return
        time.sleep(0.5)
    raise RuntimeError(f"{url}: not all {experts} experts were up in time")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
