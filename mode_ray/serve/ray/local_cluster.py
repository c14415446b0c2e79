"""Serves a run on this machine only, with a Ray cluster that is started for it and ends with it."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray import serve

from mode_ray.config.run import RayConfig, RunConfig
from mode_ray.errors import UsageError
from mode_ray.serve.listening import bind, url_of
from mode_ray.serve.ray.dashboard import ServeDashboard
from mode_ray.serve.ray.deployment_file import needed_cpus, ray_settings, serve_document
from mode_ray.serve.ray.live import submit, wait_until_running
from mode_ray.stages.access_token import find_token_file
from mode_ray.stages.session import ray_session

_START_DEADLINE_SECONDS = 600.0


def serve_run(config: RunConfig, experts: Sequence[int], say: Callable[[str], None]) -> None:
    """Serve experts of a run on this machine until Ctrl-C, with a new Ray cluster.

    Args:
        config: The run's config.
        experts: Ids of the experts to serve.
        say: Prints a line.

    Raises:
        UsageError: The port is in use, or RAY_ADDRESS names a cluster.
        DataError: An application does not start.
    """
    settings = ray_settings(config, len(experts))
    if settings.port == 0:
        with bind(settings.host, 0) as free:
            settings = settings.model_copy(update={"port": free.getsockname()[1]})
    with local_serving(serve_document(config.directory.uri, experts, settings), config.ray, say) as dashboard:
        page = url_of(settings.host, settings.port)
        say(f"page: {page}/")
        say(f"API: {page}/v1 (described in {page}/openapi.json)")
        say(f"dashboard: {dashboard}")
        if token_file := find_token_file(dashboard, os.environ):
            say(f"the dashboard needs the token in {token_file}")
        say(f"metrics: {metrics_address()}")
        say(
            f"Ctrl-C stops it. Change the experts with: mode-ray serve add|remove|replace EXPERT --address {dashboard}"
        )
        wait_for_the_end()
        say("stopping")


@contextmanager
def local_serving(document: dict[str, Any], config: RayConfig, say: Callable[[str], None]) -> Iterator[str]:
    """Serve a list of applications while the block runs.

    Args:
        document: The list; see mode_ray.serve.ray.deployment_file.
        config: Of the new cluster. The cluster gets a dashboard, which adds and removes experts, and twice as many
            logical CPUs as the applications request: a replaced expert runs until the new one is ready.
        say: Prints a line on every step.

    Yields:
        The URL of the dashboard.

    Raises:
        UsageError: The port is in use, or RAY_ADDRESS names a cluster.
        DataError: An application does not start.
    """
    if config.address or os.environ.get("RAY_ADDRESS"):
        raise UsageError(
            "this command serves on this machine only, but ray.address or RAY_ADDRESS names a cluster: write a file "
            "with `mode-ray serve config RUN` and give it to `serve deploy`"
        )
    # Raises before Ray starts if the port is in use.
    bind(document["http_options"]["host"], document["http_options"]["port"]).close()
    cpus = max(config.num_cpus or os.cpu_count() or 1, math.ceil(2 * needed_cpus(document)))
    with ray_session(config.model_copy(update={"dashboard": True, "num_cpus": cpus})) as dashboard:
        address = f"http://{dashboard}"
        endpoint = ServeDashboard(address)
        try:
            submit(endpoint, document)
            names = [application["name"] for application in document["applications"]]
            say(f"starting {len(names)} applications: {', '.join(names)}")
            wait_until_running(endpoint, names, _START_DEADLINE_SECONDS, say)
            yield address
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def metrics_address() -> str:
    """The URL of the metrics that Ray exports on this machine."""
    node = ray.nodes()[0]  # type: ignore[no-untyped-call]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def wait_for_the_end() -> None:
    """Return when the process is interrupted (Ctrl-C) or terminated."""
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
