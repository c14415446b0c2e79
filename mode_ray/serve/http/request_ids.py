"""Request ids are given by what stands in front of the application, which takes them from the request's header.

Ray Serve's proxy takes the caller's `X-Request-ID` as it is, or makes one and puts it into the request; then it adds
the header to every answer, beside what the application has set. So the application never sets it, and without Ray
Serve the middleware here stands in the proxy's place.
"""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "X-Request-ID"
_LONGEST = 64
_REQUEST_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{_LONGEST}}}")


class RequestIds:
    """ASGI middleware for a server of our own: gives ids, and takes the caller's where it is a plain word.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the id into a request and its answer."""
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
    """The id of a request, as its answer will carry it; empty where nothing in front gave one."""
    return headers.get(REQUEST_ID_HEADER, "")


def in_log(request_id: str) -> str:
    """An id for a line of the log: Ray Serve lets pass whatever a caller calls one."""
    return ascii(request_id)[1:-1][:_LONGEST]
