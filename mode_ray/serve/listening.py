"""The socket that the HTTP server listens on, and its URL."""

import socket

from mode_ray.errors import UsageError

_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is a free port.

    Raises:
        UsageError: The address is in use, or does not belong to this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port} ({error}): choose another with --host and --port") from None


def url_of(host: str, port: int) -> str:
    """The URL of an address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
