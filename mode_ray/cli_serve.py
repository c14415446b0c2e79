"""The command that puts a finished run behind HTTP."""

import argparse
import logging
from collections.abc import Callable

from rich.console import Console

from mode_ray.errors import UsageError
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


def _serve(options: argparse.Namespace, console: Console) -> int:
    from mode_ray.serve.served_run import ServedRun

    overrides = list(options.overrides)
    if options.host is not None:
        overrides.append(f"serve.host={options.host!r}")
    if options.port is not None:
        overrides.append(f"serve.port={options.port}")
    served = ServedRun.load(Location.parse(options.run), overrides)
    if not options.in_process:
        raise UsageError("give --in-process: all experts in this process")
    from mode_ray.serve.in_process import serve_in_process
    from mode_ray.serve.observer import Unobserved

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("mode_ray.serve").setLevel(logging.INFO)
    _say(console, f"loading {served.n} experts of {served.run}")

    def ready(url: str) -> None:
        _say(console, f"page:    {url}/")
        _say(console, f"API:     {url}/v1 (described in {url}/openapi.json)")

    serve_in_process(served, Unobserved(), ready)
    return 0


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
