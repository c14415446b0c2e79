"""The whole ensemble on Ray Serve, started by the command line: kills, a hang, changes, and too much load.

One serving for all tests of the file, in their order.
"""

import base64
import json
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from expected_answers import TOLERANCE, Answers
from serve_load import Reply
from serving_process import CLIENTS, STOP_DEADLINE_SECONDS, MemorySampler, Serving, free_port, png, serving_of, until
from tiny_run import build_run, grow_run, save_expert

from mode_ray.cli import main
from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.slow]

EXPERTS = 4
REPLACED, HUNG, KILLED, ADDED = 0, 1, 2, 3
# An expert that was answering a killed router is mute to the other for two to three seconds; see docs/serving.md.
EXPERT_DEADLINE_SECONDS, REQUEST_DEADLINE_SECONDS = 4.0, 12.0
MOST_TURN_SECONDS = 5.0
SLACK_SECONDS = 3.0  # of two busy cores
QUEUED = 16
OVERLOAD = 4.0
OVERLOAD_SECONDS = 60.0
RECOVERY_SECONDS = 10.0
MOST_GROWTH_BYTES = 300 << 20
DASHBOARD_FILE = (
    Path(__file__).resolve().parents[2] / "cluster_configs" / "chart" / "dashboards" / "mode_ray_serving.json"
)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    config = build_run(
        tmp_path_factory.mktemp("served"),
        EXPERTS,
        {
            "port": free_port(),
            "expert_deadline_seconds": EXPERT_DEADLINE_SECONDS,
            "request_deadline_seconds": REQUEST_DEADLINE_SECONDS,
            "max_queued_requests": QUEUED,
            "pruning": {"share": 1.0},
            "router_replicas": {"min": 2, "max": 2},
        },
    )
    with serving_of(config) as running:
        yield running


@pytest.fixture(scope="module")
def replacement(tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = Location.parse(str(tmp_path_factory.mktemp("replacement") / "model"))
    save_expert(folder, seed=99)
    return folder


@pytest.fixture(scope="module")
def answers(serving: Serving, replacement: Location) -> Answers:
    return Answers(serving.config, {REPLACED: replacement})


def lost(replies: list[Reply]) -> list[Reply]:
    return [reply for reply in replies if reply.status != 200]


class TestStart:
    def test_nothing_is_said_of_a_start_that_is_only_slow(self, serving: Serving) -> None:
        assert [line for line in serving.said if "waits" in line] == []


class TestKills:
    def test_a_killed_expert_is_left_out_until_it_is_back(self, serving: Serving, answers: Answers) -> None:
        with serving.under_load() as load:
            os.kill(serving.replicas(f"expert-{KILLED}")[0], signal.SIGKILL)
            seconds = until(lambda: KILLED in (serving.left_out() or ()), "a degraded answer")
            seconds += until(lambda: serving.left_out() == [], "the expert is back")
        waited = [reply for reply in load.replies if reply.seconds > 0.8 * EXPERT_DEADLINE_SECONDS]
        report("expert killed", load.replies, back_seconds=seconds, waited=len(waited))
        assert not lost(load.replies)
        assert len(waited) <= CLIENTS, "only the calls in flight wait"
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
            killed, router = time.monotonic(), serving.replicas("router")[0]
            os.kill(router, signal.SIGKILL)
            until(lambda: router not in serving.replicas("router"), "the death is noticed")
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


class TestTurns:
    def test_large_tasks_hold_up_nobody_and_end_when_their_clients_leave(self, serving: Serving) -> None:
        host, port = serving.url.removeprefix("http://").split(":")
        image = base64.b64encode(png(1)).decode()

        def large(name: str) -> socket.socket:
            labels = [f"{name} number {number}" for number in range(1000)]
            fields = {"images": [{"base64": image}], "labels": labels, "templates": [f"{i} {{}}" for i in range(10)]}
            body = json.dumps(fields).encode()
            head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            head += "\r\nContent-Type: application/json"
            connection = socket.create_connection((host, int(port)), timeout=30)
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            return connection

        def seconds_of(label: str) -> float:
            began = time.monotonic()
            fields = {"images": [{"base64": image}], "labels": [label]}
            answer = httpx.post(f"{serving.url}/v1/classify", json=fields, timeout=30)
            assert (answer.status_code, answer.json()["degraded"]) == (200, False)
            return time.monotonic() - began

        def worked_seconds() -> float:
            pids = [pid for expert in range(EXPERTS) for pid in serving.replicas(f"expert-{expert}")]
            return sum(float(psutil.Process(pid).cpu_times().user) for pid in pids)

        running = [large(name) for name in ("cat", "dog", "bus", "apple")]
        time.sleep(1.0)
        beside = seconds_of("a zebra")
        for connection in running:
            connection.close()
        time.sleep(1.0)
        before = worked_seconds()
        time.sleep(2.0)
        still = worked_seconds() - before
        after = seconds_of("a lion")
        report("large tasks", [], beside=beside, after=after, worked_for_clients_that_left=still)
        assert beside < MOST_TURN_SECONDS
        assert after < MOST_TURN_SECONDS
        assert still < 0.5, "the experts work for clients that left"


class TestChanges:
    def test_an_expert_that_does_not_exist_is_refused_at_once(
        self, serving: Serving, capsys: pytest.CaptureFixture[str]
    ) -> None:
        began = time.monotonic()
        assert main(["serve", "add", "9", "--address", serving.dashboard]) == 2
        assert time.monotonic() - began < 2.0
        said = capsys.readouterr().err
        assert said.endswith(f"there is no expert 9: the run has {EXPERTS}, from 0 to {EXPERTS - 1}\n")
        assert said.count("\n") == 1

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

    def test_the_run_has_grown_and_the_routers_go_over_to_it(
        self, serving: Serving, answers: Answers, replacement: Location, tmp_path: Path
    ) -> None:
        grown = grow_run(serving.config, tmp_path, {REPLACED: replacement}, ["a cloud", "a mountain"])
        after = Answers(grown, {})
        task = serving.register()
        others = {name: serving.replicas(name) for name in ("expert-1", "expert-2", "router")}
        with serving.under_load() as load:
            serving.command("add", str(EXPERTS), "--run", grown.run)
        report("the run has grown", load.replies)
        assert not lost(load.replies)
        for reply in load.replies:
            assert not reply.answer["degraded"]
            distances = answers.distance(reply, replaced=True), after.distance(reply, replaced=None)
            assert min(distances) < TOLERANCE
        for _ in range(4):  # by both routers
            after.require(serving.ask(), replaced=None)
            assert serving.knows(task), "ids that were given out stay"
        assert {name: serving.replicas(name) for name in others} == others, "nobody else was restarted"


class TestRequestIds:
    @pytest.mark.parametrize("given", [{}, {"X-Request-ID": "mine-1"}, {"X-Request-ID": "mine, 1"}])
    def test_an_answer_carries_the_proxys_id_alone(self, serving: Serving, given: dict[str, str]) -> None:
        answer = httpx.post(f"{serving.url}/v1/route", json={}, headers=given, timeout=30)
        (carried,) = answer.headers.get_list("X-Request-ID")
        assert answer.json()["error"]["request_id"] == carried
        assert given.get("X-Request-ID", carried) == carried


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
