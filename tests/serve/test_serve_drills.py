"""The whole ensemble on Ray Serve, started by the command line: kills, a hang, changes, and too much load.

One serving for all tests of the file, in their order.
"""

import asyncio
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pytest
from PIL import Image
from serve_load import Load, Reply
from tiny_run import build_run, save_expert

from mode_ray.cli import main
from mode_ray.config import RunConfig
from mode_ray.serve.answers import classify_answer
from mode_ray.serve.ensemble_service import EnsembleService
from mode_ray.serve.in_process import local_service
from mode_ray.serve.live import ServeEndpoint, connect
from mode_ray.serve.observer import Unobserved
from mode_ray.serve.served_run import ServedRun
from mode_ray.serve.task_definition import TaskDefinition
from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.slow]

EXPERTS = 4
REPLACED, HUNG, KILLED, ADDED = 0, 1, 2, 3
LABELS = ("cat", "dog", "bus", "train", "apple", "banana", "house", "tower")
TEMPLATE = "a photo of a {}."
QUERY = {"labels": json.dumps(list(LABELS)), "templates": json.dumps([TEMPLATE]), "experts": "true"}
IMAGES = 4
TOLERANCE = 1e-5
CLIENTS = 4
EXPERT_DEADLINE_SECONDS, REQUEST_DEADLINE_SECONDS = 2.0, 8.0
SLACK_SECONDS = 3.0  # of two busy cores
START_DEADLINE_SECONDS, CHANGE_DEADLINE_SECONDS, STOP_DEADLINE_SECONDS = 240.0, 180.0, 60.0
QUEUED = 16
OVERLOAD = 4.0
OVERLOAD_SECONDS = float(os.environ.get("MODE_RAY_OVERLOAD_SECONDS", "15"))
RECOVERY_SECONDS = 10.0
MOST_GROWTH_BYTES = 300 << 20
DASHBOARD_FILE = Path(__file__).resolve().parents[2] / "cluster_configs" / "grafana" / "mode_ray_serving.json"


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], what: str, seconds: float = CHANGE_DEADLINE_SECONDS) -> float:
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
        self.url = self._said(said, r"page: (http://\S+?)/?$")
        self.dashboard = self._said(said, r"dashboard: (http://\S+?)/?$")
        self.metrics = self._said(said, r"metrics: (http://\S+)$")
        self.endpoint: ServeEndpoint = connect(self.dashboard)
        self._images = [png(seed) for seed in range(IMAGES)]

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
        return psutil.Process(self.process.pid).children(recursive=True)

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


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    port = free_port()
    config = build_run(
        tmp_path_factory.mktemp("served"),
        EXPERTS,
        {
            "port": port,
            "expert_deadline_seconds": EXPERT_DEADLINE_SECONDS,
            "request_deadline_seconds": REQUEST_DEADLINE_SECONDS,
            "max_queued_requests": QUEUED,
            "pruning": {"share": 1.0},
            "router_replicas": {"min": 2, "max": 2},
        },
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mode_ray.cli", "serve", config.run],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: said.extend(iter(process.stdout.readline, "")), daemon=True)
    reader.start()
    try:
        until(
            lambda: any("Ctrl-C" in line for line in said) or process.poll() is not None,
            "mode-ray serve is up",
            START_DEADLINE_SECONDS,
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


class Answers:
    """What every answer must be: the in-process ensemble's, or the same scaled to the experts that are in it."""

    def __init__(self, config: RunConfig, replacement: Location) -> None:
        self._first = in_process_answers(config, {})
        self._second = in_process_answers(config, {REPLACED: replacement})

    def require(self, reply: Reply, *, replaced: bool | None) -> None:
        """Compare one answer; `replaced`: whether the replacement answers, None while it may be either."""
        answer = reply.answer
        assert answer["degraded"] == bool(answer["left_out"])
        got = by_label(answer["results"][0])
        candidates = {False: [self._first], True: [self._second], None: [self._first, self._second]}[replaced]
        distances = []
        for full in candidates:
            experts = full[reply.image]["results"][0]["experts"]
            kept = [expert for expert in experts if expert["id"] not in answer["left_out"]]
            total = sum(expert["weight"] for expert in kept)
            names = full[reply.image]["results"][0]["labels"]
            expected = sum(np.array(expert["scores"]) * (expert["weight"] / total) for expert in kept)
            distances.append(max(abs(got[name] - score) for name, score in zip(names, expected, strict=True)))
        assert min(distances) < TOLERANCE, f"wrong by {min(distances)} with {answer['left_out']} left out"


def in_process_answers(config: RunConfig, others: Mapping[int, Location]) -> list[dict[str, Any]]:
    """What the ensemble answers without Ray and HTTP, for every image; some experts' models lie elsewhere."""
    run = ServedRun.load(Location.parse(config.run))
    served = dataclasses.replace(run, experts={**run.experts, **others})
    task = TaskDefinition(labels=LABELS, templates=(TEMPLATE,), rule=served.config.routing.rule)

    async def every(service: EnsembleService) -> list[dict[str, Any]]:
        found = [await service.score([png(seed)], task) for seed in range(IMAGES)]
        return [classify_answer(scores, served, None, experts=True).model_dump() for scores in found]

    with local_service(served, served.config.serve, Unobserved()) as service:
        return asyncio.run(every(service))


def by_label(result: Mapping[str, Any]) -> dict[str, float]:
    return dict(zip(result["labels"], result["scores"], strict=True))


@pytest.fixture(scope="module")
def replacement(tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = Location.parse(str(tmp_path_factory.mktemp("replacement") / "model"))
    save_expert(folder, seed=99)
    return folder


@pytest.fixture(scope="module")
def answers(serving: Serving, replacement: Location) -> Answers:
    return Answers(serving.config, replacement)


def lost(replies: list[Reply]) -> list[Reply]:
    return [reply for reply in replies if reply.status != 200]


class TestKills:
    def test_a_killed_expert_is_left_out_until_it_is_back(self, serving: Serving, answers: Answers) -> None:
        with serving.under_load() as load:
            os.kill(serving.replicas(f"expert-{KILLED}")[0], signal.SIGKILL)
            seconds = until(lambda: KILLED in (serving.left_out() or ()), "a degraded answer")
            seconds += until(lambda: serving.left_out() == [], "the expert is back")
        report("expert killed", load.replies, back_seconds=seconds)
        assert not lost(load.replies)
        require_bounded(load.replies)
        for reply in load.replies:
            assert set(reply.answer["left_out"]) <= {KILLED}
            answers.require(reply, replaced=False)

    def test_a_hung_expert_costs_one_deadline_not_one_a_request(self, serving: Serving, answers: Answers) -> None:
        hung = serving.replicas(f"expert-{HUNG}")[0]
        with serving.under_load() as load:
            os.kill(hung, signal.SIGSTOP)
            until(lambda: HUNG in (serving.left_out() or ()), "a degraded answer")
            settled = time.monotonic()
            seconds = until(lambda: serving.left_out() == [], "Ray Serve has replaced it")
        report("expert hung", load.replies, back_seconds=seconds)
        assert not lost(load.replies)
        require_bounded(load.replies)
        for reply in load.replies:
            answers.require(reply, replaced=False)
        degraded = [r.seconds for r in load.replies if r.answer["degraded"] and r.began_seconds > settled + 1.0]
        assert np.median(degraded) < EXPERT_DEADLINE_SECONDS / 2, "most do not wait for it"

    def test_a_killed_router_takes_along_what_was_on_its_way(self, serving: Serving, answers: Answers) -> None:
        with serving.under_load() as load:
            time.sleep(3.0)
            killed = time.monotonic()
            os.kill(serving.replicas("router")[0], signal.SIGKILL)
            until(lambda: len(serving.replicas("router")) == 2, "two routers again")
            time.sleep(2.0)
        failed = lost(load.replies)
        on_its_way = [reply for reply in failed if reply.began_seconds <= killed + 0.5 <= reply.ended_seconds + 1.0]
        report("router killed", load.replies, on_its_way=len(on_its_way))
        others = len(load.replies) - len(on_its_way)
        assert len(on_its_way) <= CLIENTS
        assert len(failed) - len(on_its_way) <= others / 1000
        require_bounded(load.replies)
        for reply in load.replies:
            if reply.status == 200:
                answers.require(reply, replaced=False)


class TestChanges:
    def test_an_expert_is_replaced_at_once(self, serving: Serving, answers: Answers, replacement: Location) -> None:
        others = {name: serving.replicas(name) for name in ("expert-1", "expert-2", "router")}
        with serving.under_load() as load:
            serving.command("replace", str(REPLACED), "--folder", replacement.uri)
        report("expert replaced", load.replies)
        assert not lost(load.replies)
        for reply in load.replies:
            assert not reply.answer["degraded"]
            answers.require(reply, replaced=None)
        answers.require(serving.ask(), replaced=True)
        assert {name: serving.replicas(name) for name in others} == others, "nobody else was restarted"

    def test_an_expert_is_removed_and_added(self, serving: Serving, answers: Answers) -> None:
        with serving.under_load() as load:
            serving.command("remove", str(ADDED))
            without = serving.ask()
            serving.command("add", str(ADDED))
        report("removed and added", load.replies)
        assert not lost(load.replies)
        for reply in [*load.replies, without]:
            assert set(reply.answer["left_out"]) <= {ADDED}
            answers.require(reply, replaced=True)
        assert without.answer["left_out"] == [ADDED]
        assert serving.left_out() == []


class TestMetrics:
    def test_every_query_of_the_dashboard_names_what_is_exported(self, serving: Serving) -> None:
        queries = [
            target["expr"] for panel in json.loads(DASHBOARD_FILE.read_text())["panels"] for target in panel["targets"]
        ]
        wanted = {name for query in queries for name in re.findall(r"\b(?:ray|mode)_\w+", query)}
        assert len(wanted) > 8

        def missing() -> set[str]:
            with urllib.request.urlopen(serving.metrics, timeout=10) as page:  # noqa: S310  (http, loopback)
                exported = {re.split(r"[{ ]", line)[0] for line in page.read().decode().splitlines()}
            return wanted - exported

        until(lambda: not missing(), f"the metrics page has {sorted(wanted)}", 30.0)


class TestOverload:
    def test_what_is_taken_is_answered_in_time_and_the_rest_refused(self, serving: Serving, answers: Answers) -> None:
        warm = serving.load()
        warm.closed_loop(clients=16, seconds=6.0)
        capacity = sum(reply.status == 200 for reply in warm.replies) / 6.0
        sampler = MemorySampler(serving.processes())
        load = serving.load()
        with sampler:
            load.at_rate(OVERLOAD * capacity, OVERLOAD_SECONDS)
        ended = time.monotonic()
        taken = [reply for reply in load.replies if reply.status == 200]
        report("overload", load.replies, capacity=capacity, memory=sampler.growth_bytes / 2**20)
        assert {reply.status for reply in load.replies} == {200, 503}
        assert all(reply.retry_after for reply in load.replies if reply.status == 503)
        assert len(taken) > 0.3 * capacity * OVERLOAD_SECONDS
        require_bounded(taken)
        for reply in taken:
            answers.require(reply, replaced=True)
        assert sampler.growth_bytes < MOST_GROWTH_BYTES

        def recovered() -> bool:
            reply = serving.ask()
            return reply.status == 200 and not reply.answer["degraded"] and reply.seconds < 1.0

        until(recovered, "answers are quick and full again", RECOVERY_SECONDS)
        report("recovery", [], seconds=time.monotonic() - ended)


class TestEnd:
    def test_ctrl_c_ends_all_processes(self, serving: Serving) -> None:
        children = serving.processes()
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(STOP_DEADLINE_SECONDS) == 0
        _, left = psutil.wait_procs(children, timeout=20)
        assert not left


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


def require_bounded(replies: list[Reply]) -> None:
    worst = max(reply.seconds for reply in replies)
    assert worst < REQUEST_DEADLINE_SECONDS + SLACK_SECONDS, f"one took {worst:.1f} s"


def report(title: str, replies: list[Reply], **figures: float) -> None:
    """Print a drill's figures; pytest shows them with -s."""
    seconds = sorted(reply.seconds for reply in replies) or [0.0]
    statuses = dict(Counter(reply.status or "broken" for reply in replies))
    degraded = sum(reply.status == 200 and reply.answer["degraded"] for reply in replies)
    median, p99 = seconds[len(seconds) // 2], seconds[int(0.99 * (len(seconds) - 1))]
    times = f"p50 {median:.3f} p99 {p99:.3f} max {seconds[-1]:.3f} s"
    line = f"{title}: {len(replies)} {statuses}, degraded {degraded}, {times}"
    sys.stdout.write(f"\n{line} { ({name: round(value, 2) for name, value in figures.items()}) }\n")
