"""Serves the ensemble from one process, without Ray: local experts, the service and uvicorn."""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.types import ASGIApp

from mode_ray.config.serve import ServeConfig
from mode_ray.models.compiled_trunks import compile_image_trunks
from mode_ray.models.together import by_image_trunk, load_experts
from mode_ray.serve.http.api import create_app
from mode_ray.serve.http.header_deadline import protocol_with_header_deadline
from mode_ray.serve.http.request_ids import RequestIds
from mode_ray.serve.listening import bind, url_of
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.expert_client import ExpertClient
from mode_ray.serve.service.local_expert import LocalExperts
from mode_ray.serve.service.metrics import ServeMetrics
from mode_ray.serve.service.served_run import ServedRun

_GRACE_SECONDS = 5


@contextlib.contextmanager
def local_service(served: ServedRun, config: ServeConfig, metrics: ServeMetrics) -> Iterator[EnsembleService]:
    """The service with all experts of a run in this process; its threads end with the block.

    Experts with equal image trunks run together. `threads_in_process` divided by `threads_per_expert` of these groups
    run at the same time; if there are fewer, each of them gets more threads.

    Raises:
        UsageError: The caption encoder cannot be found, or OpenVINO is missing or wrong.
        DataError: A model is missing or damaged.
    """
    threads = config.threads_in_process or len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as cleanup:
        groups = by_image_trunk(load_experts(served.experts, config.device, config.precision))
        at_once = min(max(1, threads // config.threads_per_expert), len(groups))
        for group in groups:
            for model in group.values():
                model.threads = max(config.threads_per_expert, threads // at_once)
            if config.runtime == "openvino":
                compile_image_trunks(group.values())
        executor = ThreadPoolExecutor(at_once, thread_name_prefix="experts")
        cleanup.callback(executor.shutdown, wait=False, cancel_futures=True)
        clients: dict[int, ExpertClient] = {}
        for group in groups:
            experts = LocalExperts(group, config, metrics, executor)
            cleanup.callback(experts.close)
            clients |= experts.clients
        service = EnsembleService(served, clients, config, metrics)
        cleanup.callback(service.close)
        yield service


def uvicorn_server(app: ASGIApp, config: ServeConfig) -> uvicorn.Server:
    """A server for the application. Its own log is off, because it would contain the queries."""
    settings = uvicorn.Config(
        RequestIds(app),
        http=protocol_with_header_deadline(config.request_deadline_seconds),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(settings)


def serve_in_process(served: ServedRun, metrics: ServeMetrics, on_ready: Callable[[str], None]) -> None:
    """Serve a run until the process is interrupted.

    Args:
        served: The run with its config.
        metrics: Metrics of this process.
        on_ready: Called with the URL once all models are loaded.

    Raises:
        UsageError: The address is in use.
        DataError: A model is missing or damaged.
    """
    config = served.config.serve
    with bind(config.host, config.port) as listening, local_service(served, config, metrics) as service:
        on_ready(url_of(*listening.getsockname()[:2]))
        uvicorn_server(create_app(lambda: service, config), config).run(sockets=[listening])
