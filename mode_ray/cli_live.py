"""The commands that serve a run by Ray: here, as a file for a cluster, and the changes of what a cluster serves."""

import argparse
import os
from collections.abc import Callable, Sequence

from rich.console import Console

from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.stages.access_token import find_token_file
from mode_ray.storage import Location

ADD, REMOVE, REPLACE, CONFIG = "serve add", "serve remove", "serve replace", "serve config"
SERVE_COMMANDS = (ADD, REMOVE, REPLACE, CONFIG)
_ADDRESS_VARIABLE = "RAY_DASHBOARD_ADDRESS"


def add_live_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands that change what a cluster serves."""
    helps = {
        ADD: "serve further experts on a live cluster",
        REMOVE: "serve an expert no longer",
        REPLACE: "exchange the model of a served expert, without a pause",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == ADD:
            command.add_argument("experts", type=int, nargs="+", metavar="expert", help="number of an expert")
            command.add_argument("--run", help="the run of `train add` that they belong to, to be served from now on")
        else:
            command.add_argument("expert", type=int, help="number of the expert")
        if name != REMOVE:
            command.add_argument("--folder", help="its model (default: the run's, or as before)")
        command.add_argument("--address", help=f"the dashboard, http://HOST:8265 (default: {_ADDRESS_VARIABLE})")
        command.add_argument("--router", help="the router application, where several are served")
        command.set_defaults(function=_change)


def serve_on_ray(config: RunConfig, run: Location, experts: Sequence[int], console: Console) -> int:
    """Serve experts of a run by a Ray that is started for it, until Ctrl-C.

    Args:
        config: The run's, with its section `serve` as it is to be.
        run: The run directory.
        experts: Which of its experts.
        console: Where the addresses are printed.

    Returns:
        The exit code.

    Raises:
        UsageError: The port is taken, or RAY_ADDRESS names a cluster.
        DataError: An application does not start.
    """
    from mode_ray.serve.ray.deployment_file import serve_document
    from mode_ray.serve.ray.local_cluster import free_port, local_serving, metrics_address, wait_for_the_end

    settings = config.serve
    if settings.port == 0:
        settings = settings.model_copy(update={"port": free_port(settings.host)})
    say = _printer(console)
    with local_serving(serve_document(run.uri, experts, settings), config.ray, say) as dashboard:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        page = f"http://{host}:{settings.port}"
        say(f"page: {page}/")
        say(f"API: {page}/v1 (described in {page}/openapi.json)")
        say(f"dashboard: {dashboard}")
        if token_file := find_token_file(dashboard, os.environ):
            say(f"the dashboard asks for the token in {token_file}")
        say(f"metrics: {metrics_address()}")
        say(f"Ctrl-C ends it. Experts may come and go: mode-ray serve add|remove|replace EXPERT --address {dashboard}")
        wait_for_the_end()
        say("ending")
    return 0


def deployment_file(config: RunConfig, run: Location, experts: Sequence[int]) -> str:
    """The file for `serve deploy` that serves experts of a run, with the settings of its section `serve`.

    Raises:
        UsageError: The port is left open.
    """
    from mode_ray.serve.ray.deployment_file import as_yaml, serve_document

    if config.serve.port == 0:
        raise UsageError("serve.port=0 takes a free port, and a cluster's is to be known: give one")
    return as_yaml(serve_document(run.uri, experts, config.serve))


def _change(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.serve.ray.live import LiveServing, connect
    from mode_ray.serve.service.served_run import ServedRun

    address = options.address or os.environ.get(_ADDRESS_VARIABLE)
    if not address:
        raise UsageError(f"which cluster? Give the dashboard's --address http://HOST:8265, or set {_ADDRESS_VARIABLE}")
    live = LiveServing(connect(address), _printer(console), options.router)
    if options.command == REMOVE:
        live.remove(options.expert)
        return 0
    folder = None if options.folder is None else Location.parse(options.folder).uri
    if options.command == REPLACE:
        live.replace(options.expert, folder)
        return 0
    experts = sorted(set(options.experts))
    if folder is not None and len(experts) > 1:
        raise UsageError("--folder is one expert's: add the experts one by one")
    live.add(experts, folder, None if options.run is None else ServedRun.load(Location.parse(options.run)))
    return 0


def _printer(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
