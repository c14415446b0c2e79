"""The ensemble behind HTTP in one process, for one machine: local experts, the service, uvicorn."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.types import ASGIApp

from mode_ray.config.serve import ServeConfig
from mode_ray.errors import UsageError
from mode_ray.models.encode import Expert
from mode_ray.serve.http.api import create_app
from mode_ray.serve.http.request_ids import RequestIds
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.expert_client import ExpertClient
from mode_ray.serve.service.local_expert import LocalExpert
from mode_ray.serve.service.observer import Observer
from mode_ray.serve.service.served_run import ServedRun

_BACKLOG = 2048
_GRACE_SECONDS = 5


@contextlib.contextmanager
def local_service(served: ServedRun, config: ServeConfig, observer: Observer) -> Iterator[EnsembleService]:
    """The service with all experts of a run in this process; its threads end with the block.

    As many experts run at the same time as there are threads for.

    Raises:
        UsageError: The caption encoder cannot be found.
        DataError: A model is missing or damaged.
    """
    threads = config.threads_in_process or len(os.sched_getaffinity(0))
    at_once = min(max(1, threads // config.threads_per_expert), served.n)
    with contextlib.ExitStack() as cleanup:
        executor = ThreadPoolExecutor(at_once, thread_name_prefix="experts")
        cleanup.callback(executor.shutdown, wait=False, cancel_futures=True)
        clients: dict[int, ExpertClient] = {}
        for expert, folder in served.experts.items():
            model = Expert(folder, config.device, config.precision, config.threads_per_expert)
            client = LocalExpert(expert, model, config, observer, executor)
            cleanup.callback(client.close)
            clients[expert] = client
        service = EnsembleService(served, clients, config, observer)
        cleanup.callback(service.close)
        yield service


def bind(config: ServeConfig) -> socket.socket:
    """The socket to listen on.

    Raises:
        UsageError: The address is taken, or none of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on {config.host}:{config.port} ({error}): choose others with --host and --port"
        ) from None


def url_of(listening: socket.socket) -> str:
    """The address in a form that a browser takes."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_server(app: ASGIApp) -> uvicorn.Server:
    """A server for the application that logs no request by itself: its log would hold the queries."""
    settings = uvicorn.Config(
        RequestIds(app),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(settings)


def serve_in_process(served: ServedRun, observer: Observer, on_ready: Callable[[str], None]) -> None:
    """Serve a run until the process is told to end.

    Args:
        served: The run; its config says how.
        observer: Of the service.
        on_ready: Told the address once all models are loaded.

    Raises:
        UsageError: The address is taken.
        DataError: A model is missing or damaged.
    """
    config = served.config.serve
    with bind(config) as listening, local_service(served, config, observer) as service:
        on_ready(url_of(listening))
        uvicorn_server(create_app(lambda: service, config)).run(sockets=[listening])
