"""`mode-ray serve RUN` as a process of its own, and what a drill does to it and measures of it."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Self

import numpy as np
import psutil
from PIL import Image
from serve_load import Load, Reply

from mode_ray.cli import main
from mode_ray.config.run import RunConfig
from mode_ray.serve.ray.dashboard import ServeDashboard
from mode_ray.serve.ray.live import ServeEndpoint

LABELS = ("cat", "dog", "bus", "train", "apple", "banana", "house", "tower")
TEMPLATE = "a photo of a {}."
IMAGES = 4
CLIENTS = 4
QUERY = {"labels": json.dumps(list(LABELS)), "templates": json.dumps([TEMPLATE]), "experts": "true"}
STOP_DEADLINE_SECONDS = 60.0
_START_DEADLINE_SECONDS, _CHANGE_DEADLINE_SECONDS = 240.0, 180.0


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], what: str, seconds: float = _CHANGE_DEADLINE_SECONDS) -> float:
    """Wait for a condition; returns how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - began


class Serving:
    """`mode-ray serve RUN` in a process of its own."""

    def __init__(self, config: RunConfig, process: "subprocess.Popen[str]", said: list[str]) -> None:
        self.config = config
        self.process = process
        self.said = said
        self.url = self._said(said, r"page: (http://\S+?)/?$")
        self.dashboard = self._said(said, r"dashboard: (http://\S+?)/?$")
        self.metrics = self._said(said, r"metrics: (http://\S+)$")
        self._images = [png(seed) for seed in range(IMAGES)]

    @cached_property
    def endpoint(self) -> ServeEndpoint:
        return ServeDashboard(self.dashboard)

    @staticmethod
    def _said(said: list[str], pattern: str) -> str:
        return next(found[1] for line in said if (found := re.search(pattern, line.strip())))

    def load(self, query: Mapping[str, str] = QUERY) -> Load:
        return Load(f"{self.url}/v1/classify", self._images, query)

    def ask(self) -> Reply:
        load = self.load()
        load.closed_loop(clients=1, requests=1)
        return load.replies[0]

    def left_out(self) -> list[int] | None:
        """The experts that an answer lacks now; None without an answer."""
        reply = self.ask()
        return list(reply.answer["left_out"]) if reply.status == 200 else None

    def register(self) -> str:
        """Register the task; returns its id."""
        body = json.dumps({"labels": LABELS, "templates": [TEMPLATE]}).encode()
        request = urllib.request.Request(f"{self.url}/v1/tasks", body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  (http, loopback)
            return str(json.loads(answer.read())["task"])

    def knows(self, task: str) -> bool:
        """Whether a router knows a task's id."""
        try:
            with urllib.request.urlopen(f"{self.url}/v1/tasks/{task}", timeout=30) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    def replicas(self, application: str) -> list[int]:
        """Process ids of an application's running replicas."""
        live = self.endpoint.get_serve_details()["applications"].get(application, {"deployments": {}})
        return sorted(
            replica["pid"]
            for deployment in live["deployments"].values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        )

    def processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def command(self, *arguments: str) -> None:
        assert main(["serve", *arguments, "--address", self.dashboard]) == 0

    @contextmanager
    def under_load(self) -> Iterator[Load]:
        load = self.load()
        thread = threading.Thread(target=load.closed_loop, kwargs={"clients": CLIENTS})
        thread.start()
        try:
            yield load
        finally:
            load.end()
            thread.join()


@contextmanager
def serving_of(config: RunConfig, environment: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """A run's ensemble, served while the block runs; what it said is printed at the end.

    Args:
        config: The run's.
        environment: Of the process; by default that of the tests.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "mode_ray", "serve", config.run],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    said: list[str] = []
    output = process.stdout
    assert output is not None
    reader = threading.Thread(target=lambda: said.extend(iter(output.readline, "")), daemon=True)
    reader.start()
    try:
        until(
            lambda: any("Ctrl-C" in line for line in said) or process.poll() is not None,
            "mode-ray serve is up",
            _START_DEADLINE_SECONDS,
        )
        assert process.poll() is None, "".join(said)
        yield Serving(config, process, said)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        sys.stdout.write("".join(said))


class MemorySampler:
    """How much the private memory of processes grew while the block ran."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes = processes
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._bytes: list[int] = []

    @property
    def growth_bytes(self) -> int:
        return max(self._bytes) - self._bytes[0]

    def __enter__(self) -> Self:
        self._bytes.append(self._now())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ending.wait(2.0):
            self._bytes.append(self._now())

    def _now(self) -> int:
        total = 0
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().uss
        return total
