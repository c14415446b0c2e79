"""The command that puts a finished run behind HTTP."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable

from rich.console import Console

from mode_ray.cli_live import CONFIG, add_live_commands, deployment_file, serve_on_ray
from mode_ray.storage import Location


def add_serve(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_overrides: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add the command to the command line's own."""
    serve = commands.add_parser("serve", help="answer requests over HTTP with the experts of a run")
    serve.add_argument("run", help="the run directory: a path, s3:// or gs:// URI")
    serve.add_argument("--in-process", action="store_true", help="all experts in this process, without Ray")
    serve.add_argument("--host", help="address to listen on (default: serve.host, this machine alone)")
    serve.add_argument("--port", type=int, help="port to listen on, 0 for a free one (default: serve.port)")
    add_overrides(serve)
    serve.set_defaults(function=_serve)
    file = commands.add_parser(CONFIG, help="write the file by which `serve deploy` serves a run on a cluster")
    file.add_argument("run", help="the run directory, as every node of the cluster reads it")
    add_overrides(file)
    file.set_defaults(function=_file)
    add_live_commands(commands)


def _serve(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.serve.service.served_run import ServedRun

    overrides = list(options.overrides)
    if options.host is not None:
        overrides.append(f"serve.host={options.host!r}")
    if options.port is not None:
        overrides.append(f"serve.port={options.port}")
    served = ServedRun.load(Location.parse(options.run), overrides)
    if not options.in_process:
        return serve_on_ray(served.config, served.run, sorted(served.experts), console)
    from mode_ray.serve.in_process import serve_in_process
    from mode_ray.serve.service.metrics import prometheus_metrics

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("mode_ray.serve").setLevel(logging.INFO)
    _say(console, f"loading {served.n} experts of {served.run}")

    def ready(url: str) -> None:
        _say(console, f"page:    {url}/")
        _say(console, f"API:     {url}/v1 (described in {url}/openapi.json)")

    with contextlib.suppress(KeyboardInterrupt):  # how one ends it
        serve_in_process(served, prometheus_metrics(), ready)
    return 0


def _file(options: argparse.Namespace, _console: Console) -> int:
    from mode_ray.serve.service.served_run import ServedRun

    served = ServedRun.load(Location.parse(options.run), options.overrides)
    sys.stdout.write(deployment_file(served.config, served.run, sorted(served.experts)))
    return 0


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
