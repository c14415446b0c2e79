"""Serves the ensemble from one process, without Ray: local experts, the service and uvicorn."""

import contextlib
import os
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from mode_ray.config.serve import ServeConfig
from mode_ray.models.together import load_experts
from mode_ray.serve.http.api import create_app
from mode_ray.serve.http.header_deadline import protocol_with_header_deadline
from mode_ray.serve.http.request_ids import RequestIds
from mode_ray.serve.listening import bind, url_of
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.local_groups import LocalGroups
from mode_ray.serve.service.metrics import ServeMetrics
from mode_ray.serve.service.served_run import ServedRun

_GRACE_SECONDS = 5


@contextlib.contextmanager
def local_service(served: ServedRun, config: ServeConfig, metrics: ServeMetrics) -> Iterator[EnsembleService]:
    """The service with all experts of a run in this process; its threads end with the block.

    Raises:
        UsageError: The caption encoder cannot be found, or OpenVINO is missing or wrong.
        DataError: A model is missing or damaged.
    """
    threads = config.threads_in_process or len(os.sched_getaffinity(0))
    models = load_experts(served.experts, config.device, config.precision)
    with contextlib.ExitStack() as cleanup:
        experts = LocalGroups(models, config, metrics, threads)
        cleanup.callback(experts.close)
        service = EnsembleService(served, experts.clients, config, metrics)
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
