"""A run served by Ray on this machine alone: a cluster that is started for it, and ends with it."""

import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray import serve

from mode_ray.config.run import RayConfig, RunConfig
from mode_ray.errors import UsageError
from mode_ray.serve.ray.deployment_file import needed_cpus, serve_document
from mode_ray.serve.ray.live import connect, submit, wait_until_running
from mode_ray.stages.access_token import find_token_file
from mode_ray.stages.session import ray_session

_START_DEADLINE_SECONDS = 600.0


def serve_run(config: RunConfig, experts: Sequence[int], say: Callable[[str], None]) -> None:
    """Serve experts of a run on this machine until Ctrl-C, with a Ray that is started for it.

    Args:
        config: The run's, with the section `serve` as it is to be used.
        experts: Which of its experts.
        say: Told where everything is.

    Raises:
        UsageError: The port is taken, or RAY_ADDRESS names a cluster.
        DataError: An application does not start.
    """
    settings = config.serve
    if settings.port == 0:
        settings = settings.model_copy(update={"port": free_port(settings.host)})
    with local_serving(serve_document(config.directory.uri, experts, settings), config.ray, say) as dashboard:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        page = f"http://{host}:{settings.port}"
        say(f"page: {page}/")
        say(f"API: {page}/v1 (described in {page}/openapi.json)")
        say(f"dashboard: {dashboard}")
        if token_file := find_token_file(dashboard, os.environ):
            say(f"the dashboard asks for the token in {token_file}")
        say(f"metrics: {metrics_address()}")
        say(f"Ctrl-C ends it. Change the experts with: mode-ray serve add|remove|replace EXPERT --address {dashboard}")
        wait_for_the_end()
        say("ending")


@contextmanager
def local_serving(document: dict[str, Any], config: RayConfig, say: Callable[[str], None]) -> Iterator[str]:
    """Serve a list of applications while the block runs.

    Args:
        document: The list; see mode_ray.serve.ray.deployment_file.
        config: Of the Ray that is started. It gets the dashboard, by which experts are added and removed, and twice as
            many logical CPUs as the applications ask for: an expert is replaced by a second one beside it.
        say: Takes one line on every step.

    Yields:
        The dashboard's address.

    Raises:
        UsageError: The port is taken, or RAY_ADDRESS names a cluster.
        DataError: An application does not start.
    """
    if config.address or os.environ.get("RAY_ADDRESS"):
        raise UsageError(
            "this serves on this machine alone, but ray.address or RAY_ADDRESS names a cluster: write a file with "
            "`mode-ray serve config RUN` and hand it to `serve deploy`"
        )
    require_free_port(document["http_options"]["host"], document["http_options"]["port"])
    cpus = max(config.num_cpus or os.cpu_count() or 1, math.ceil(2 * needed_cpus(document)))
    with ray_session(config.model_copy(update={"dashboard": True, "num_cpus": cpus})) as dashboard:
        address = f"http://{dashboard}"
        endpoint = connect(address)
        try:
            submit(endpoint, document)
            names = [application["name"] for application in document["applications"]]
            say(f"starting {len(names)} applications: {', '.join(names)}")
            wait_until_running(endpoint, names, _START_DEADLINE_SECONDS, say)
            yield address
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def require_free_port(host: str, port: int) -> None:
    """Find out early whether the HTTP port can be had.

    Raises:
        UsageError: Something listens there already, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot serve on {host}:{port} ({error.strerror}): choose another with --port") from None


def free_port(host: str) -> int:
    """A port that nothing listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def metrics_address() -> str:
    """Where this machine's Ray exports its metrics, and ours among them."""
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
