"""Request ids: the application reads them from the request's header and never sets them.

Ray Serve's proxy passes on the caller's `X-Request-ID`, or adds one to the request. It also adds the header to every
answer. Without Ray Serve, the middleware here does the same.
"""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "X-Request-ID"
_LONGEST = 64
_REQUEST_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{_LONGEST}}}")


class RequestIds:
    """ASGI middleware that gives every request an id: the caller's, if it is 1 to 64 letters, digits, `.`, `_` or `-`.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the id to a request and its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        given = request_id(headers)
        taken = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        headers[REQUEST_ID_HEADER] = taken

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = taken
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id(headers: Headers) -> str:
    """The id of a request; empty if nothing in front of the application set one."""
    return headers.get(REQUEST_ID_HEADER, "")


def in_log(request_id: str) -> str:
    """An id for a line of the log, escaped and shortened: Ray Serve passes on any value from the caller."""
    return ascii(request_id)[1:-1][:_LONGEST]
