"""The head of a service is killed under load; Ray's state is in a Redis, as with `service.redis.address` of the chart.

The applications are the chart's. A worker node has all replicas and an HTTP proxy; the head has no CPUs.
"""

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from expected_answers import Answers
from helm_chart import render, required_helm
from live_monitoring import Program
from local_cluster import free_ports, local_cluster
from serve_load import Load, Reply
from serving_process import IMAGES, QUERY, png, until
from tiny_run import build_run

from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.serve.ray.dashboard import ServeDashboard

pytestmark = [pytest.mark.drill, pytest.mark.slow]

REDIS = Program("redis-server", "redis-server")
EXPERTS, CLIENTS = 2, 2
LABELS = "mode-ray/pool=cpu"
"""Of the worker node, as of the chart's pool: the router asks for it."""
WITHOUT_HEAD_SECONDS = 20.0
KillTree = Callable[["subprocess.Popen[bytes]", float], list[str]]


class Story(NamedTuple):
    """The replies by part, and what the service was at the end."""

    before: list[Reply]
    without_head: list[Reply]
    with_new_head: list[Reply]
    answers: Answers
    pids: dict[str, set[int]]
    pids_at_end: dict[str, set[int]]
    seconds_to_healthy: float


def test_answers_go_on_without_a_head(story: Story) -> None:
    assert len(story.without_head) > 10
    assert statuses(story.without_head) == {200: len(story.without_head)}
    assert statuses(story.before) == {200: len(story.before)}


def test_they_go_on_while_the_new_head_takes_over(story: Story) -> None:
    assert statuses(story.with_new_head) == {200: len(story.with_new_head)}


def test_every_answer_is_right(story: Story) -> None:
    for reply in (*story.before, *story.without_head, *story.with_new_head):
        story.answers.require(reply, replaced=False)


def test_the_new_head_finds_the_applications_healthy_and_restarts_no_replica(story: Story) -> None:
    assert story.pids_at_end == story.pids
    assert set(story.pids) == {"router", *(f"expert-{expert}" for expert in range(EXPERTS))}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, kill_tree: KillTree) -> Story:
    helm, redis = required_helm(), REDIS.path()
    folder = tmp_path_factory.mktemp("headless")
    config = build_run(folder, EXPERTS, {"pruning": {"share": 1.0}})
    redis_port, head_proxy_port, proxy_port = free_ports(3)
    head_environment = {
        # As KubeRay sets them for `gcsFaultToleranceOptions`.
        "RAY_REDIS_ADDRESS": f"127.0.0.1:{redis_port}",
        "RAY_external_storage_namespace": "mode-ray-service",
    }
    environment = {
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        # Both nodes are this machine.
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(proxy_port),
    }
    with ExitStack() as stack:
        stack.enter_context(running_redis(redis, redis_port, folder))
        cluster = stack.enter_context(local_cluster(folder, kill_tree, environment, head_environment, num_cpus=0))
        cluster.add_node(num_cpus=EXPERTS + 1, labels=LABELS)
        dashboard = ServeDashboard(cluster.dashboard)
        until(lambda: cluster.alive_nodes() == 2, "the worker node is there")
        dashboard.deploy_applications(
            {**applications(helm, config), "http_options": {"host": "127.0.0.1", "port": head_proxy_port}}
        )
        until(lambda: is_healthy(dashboard), "the service is up")
        load = Load(f"http://127.0.0.1:{proxy_port}/v1/classify", [png(seed) for seed in range(IMAGES)], QUERY)
        load.closed_loop(clients=1, requests=4)
        before_the_load = len(load.replies)
        pids = replicas(dashboard)
        thread = threading.Thread(target=load.closed_loop, kwargs={"clients": CLIENTS})
        thread.start()
        try:
            time.sleep(5.0)
            killed = time.monotonic()
            cluster.kill_head()
            time.sleep(WITHOUT_HEAD_SECONDS)
            started = time.monotonic()
            cluster.run_head()
            until(lambda: is_healthy(dashboard), "the service is healthy again")
            healthy = time.monotonic()
            time.sleep(5.0)
        finally:
            load.end()
            thread.join()
        pids_at_end = replicas(dashboard)
    replies = load.replies[before_the_load:]
    story = Story(
        [reply for reply in replies if reply.ended_seconds < killed],
        [reply for reply in replies if killed <= reply.ended_seconds < started],
        [reply for reply in replies if started <= reply.ended_seconds],
        Answers(config, {}),
        pids,
        pids_at_end,
        healthy - started,
    )
    for name, part in zip(("before", "without head", "with new head"), story[:3], strict=True):
        slowest = max((reply.seconds for reply in part), default=0.0)
        print(f"{name}: {len(part)} {statuses(part)}, slowest {slowest:.2f} s")  # noqa: T201 - pytest shows it
    print(f"healthy {story.seconds_to_healthy:.0f} s after the new head was started")  # noqa: T201
    return story


def applications(helm: str, config: RunConfig) -> dict[str, Any]:
    """The chart's list of applications for a run, one replica of each."""
    bucket, _, run = config.run.rpartition("/")
    settings = (
        *("service.enabled=true", f"bucket={bucket}", f"service.run={run}", f"service.experts={EXPERTS}"),
        *("service.replicas=1", "service.routers=1", "service.maxReplicas=1", "service.gpusPerExpert=0"),
    )
    (service,) = (part for part in render(helm, "values.yaml", settings) if part["kind"] == "RayService")
    made: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return made


def is_healthy(dashboard: ServeDashboard) -> bool:
    """Whether all applications and all proxies are, as for `serve status`."""
    try:
        details = dashboard.get_serve_details()
    except UsageError:
        return False
    states = [application["status"] for application in details["applications"].values()]
    proxies = [proxy["status"] for proxy in details["proxies"].values()]
    return (
        len(states) == EXPERTS + 1 and set(states) == {"RUNNING"} and len(proxies) == 2 and set(proxies) == {"HEALTHY"}
    )


def replicas(dashboard: ServeDashboard) -> dict[str, set[int]]:
    """Process ids of the running replicas of every application."""
    return {
        name: {
            replica["pid"]
            for deployment in application["deployments"].values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }
        for name, application in dashboard.get_serve_details()["applications"].items()
    }


def statuses(replies: list[Reply]) -> dict[int, int]:
    return dict(Counter(reply.status for reply in replies))


@contextmanager
def running_redis(program: str, port: int, folder: Path) -> Iterator[None]:
    """A Redis in memory on the loopback."""
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: b"Ready to accept connections" in (folder / "redis.log").read_bytes(), "Redis is up")
        yield
    finally:
        process.kill()
        process.wait()
