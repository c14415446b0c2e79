"""The commands that serve a run: on this machine, on a cluster, and changes to a live cluster."""

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mode_ray.cli.shared import Overrides, Run, command_group, flag, say
from mode_ray.errors import UsageError

if TYPE_CHECKING:
    from mode_ray.serve.ray.live import LiveServing
    from mode_ray.serve.service.served_run import ServedRun

_ADDRESS_VARIABLE = "RAY_DASHBOARD_ADDRESS"

Expert = Annotated[int, typer.Argument(metavar="EXPERT", help="Number of the expert.")]
Folder = Annotated[str | None, typer.Option(metavar="DIRECTORY", help="Its model (default: the run's, or as before).")]
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", envvar=_ADDRESS_VARIABLE, help="The cluster's dashboard, http://HOST:8265."),
]
Router = Annotated[str | None, typer.Option(help="The router application, if several are served.")]

group = command_group("serve")


@group.callback()
def serve(
    run: Run,
    overrides: Overrides,
    in_process: Annotated[bool, flag("--in-process", "Serve all experts in this process, without Ray.")] = False,
    host: Annotated[str | None, typer.Option(help="Address (default: serve.host).")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one (default: serve.port).")] = None,
) -> None:
    """Answer requests over HTTP with the experts of a run."""
    given = [f"serve.host={host!r}"] if host is not None else []
    given += [f"serve.port={port}"] if port is not None else []
    served = _load(run, [*overrides, *given])
    if served.config.serve.runtime == "openvino":
        from mode_ray.util.openvino_module import import_openvino

        import_openvino()  # that it is missing is said before Ray starts
    if in_process:
        _serve_in_process(served)
    else:
        from mode_ray.serve.ray.local_cluster import serve_run

        serve_run(served.config, sorted(served.experts), say)


@group.command("config")
def write_config(run: Run, overrides: Overrides) -> None:
    """Print the file that `serve deploy` needs to serve a run on a cluster."""
    from mode_ray.serve.ray.deployment_file import as_yaml, ray_settings, serve_document

    served = _load(run, overrides)
    settings = ray_settings(served.config, served.n)
    if settings.port == 0:
        raise UsageError("serve.port=0 picks a free port, but the port of a cluster must be known: set serve.port")
    sys.stdout.write(as_yaml(serve_document(served.run.uri, sorted(served.experts), settings)))


@group.command()
def add(
    experts: Annotated[list[int], typer.Argument(metavar="EXPERT", help="Numbers of experts.")],
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="The run of these experts, made by train add.")
    ] = None,
    folder: Folder = None,
    address: Address = None,
    router: Router = None,
) -> None:
    """Serve additional experts on a live cluster."""
    live = _live(address, router)
    numbers = sorted(set(experts))
    if folder is not None and len(numbers) > 1:
        raise UsageError("--folder is the model of one expert: add the experts one at a time")
    live.add(numbers, _uri(folder), None if run is None else _load(run, []))


@group.command()
def remove(expert: Expert, address: Address = None, router: Router = None) -> None:
    """Stop serving an expert."""
    _live(address, router).remove(expert)


@group.command()
def replace(expert: Expert, folder: Folder = None, address: Address = None, router: Router = None) -> None:
    """Replace the model of a served expert without downtime."""
    _live(address, router).replace(expert, _uri(folder))


def _load(run: str, overrides: list[str]) -> "ServedRun":
    from mode_ray.serve.service.served_run import ServedRun
    from mode_ray.storage import Location

    return ServedRun.load(Location.parse(run), overrides)


def _uri(folder: str | None) -> str | None:
    from mode_ray.storage import Location

    return None if folder is None else Location.parse(folder).uri


def _live(address: str | None, router: str | None) -> "LiveServing":
    if not address:
        raise UsageError(
            f"--address is missing: give the dashboard's URL, http://HOST:8265, or set {_ADDRESS_VARIABLE}"
        )
    from mode_ray.serve.ray.dashboard import ServeDashboard
    from mode_ray.serve.ray.live import LiveServing

    return LiveServing(ServeDashboard(address), say, router)


def _serve_in_process(served: "ServedRun") -> None:
    from mode_ray.serve.in_process import serve_in_process
    from mode_ray.serve.service.metrics import prometheus_metrics

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("mode_ray.serve").setLevel(logging.INFO)
    say(f"loading {served.n} experts of {served.run}")

    def ready(url: str) -> None:
        say(f"page:    {url}/")
        say(f"API:     {url}/v1 (described in {url}/openapi.json)")

    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C stops the server
        serve_in_process(served, prometheus_metrics(), ready)
