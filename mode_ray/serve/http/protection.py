"""Middleware around the application: bearer token, number of requests, size of the body, deadline.

It also adds security headers, and logs one line per request without its content. Health checks and the page's files
need no token and no place in the queue. The work of a request ends when its client leaves. HEAD is answered as GET,
without the body. It is plain ASGI, so that the body of a refused request is not read.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Sequence

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mode_ray.config.serve import ServeConfig
from mode_ray.serve.http.api_errors import REQUEST_ID_STATE, error_response, service_error_response
from mode_ray.serve.http.request_ids import in_log, request_id
from mode_ray.serve.http.request_stream import BoundedBody, until_client_leaves
from mode_ray.serve.service.errors import ServiceError, overloaded, unavailable, where_it_failed
from mode_ray.serve.service.metrics import ServeMetrics

OPEN_PATHS = ("/", "/v1/health", "/v1/ready")
OPEN_FOLDER = "/static/"
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self' blob:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_SCHEME = "bearer "
_CLIENT_LEFT = 499  # nginx's status for the log; nobody receives it

_logger = logging.getLogger("mode_ray.serve.access")


class Protection:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        config: Tokens, limits, deadline.
        get_metrics: Returns the metrics of this process; called for every request.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, get_metrics: Callable[[], ServeMetrics]) -> None:
        self._app = app
        self._config = config
        self._get_metrics = get_metrics
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        began = time.monotonic()

        def record(status: int) -> None:
            # The route's pattern; path and query are content of the request.
            route = getattr(scope.get("route"), "path", "unknown")
            self._get_metrics().requests(1.0, route=route, status=str(status))
            id_, milliseconds = in_log(answer.request_id), (time.monotonic() - began) * 1e3
            _logger.info("%s %s %s %d %.0f ms", id_, method, route, status, milliseconds)

        answer = _Answer(send, request_id(headers), record, with_body=method != "HEAD")
        scope.setdefault("state", {})[REQUEST_ID_STATE] = answer.request_id
        try:
            await self._guarded(scope, receive, answer, headers)
        finally:
            answer.end()

    async def _guarded(self, scope: Scope, receive: Receive, answer: "_Answer", headers: Headers) -> None:
        try:
            if self._is_open(scope):
                await self._app(scope, receive, answer.send)
                return
            self._require_token(headers)
            limited = BoundedBody(receive, headers, self._config.limits.body_bytes)
            if scope["method"] == "GET":
                await self._app(scope, limited.receive, answer.send)
                return
            await self._in_queue(scope, limited.receive, answer)
        except ClientDisconnect:  # while its body was read
            return
        except ServiceError as error:
            await answer.refuse(scope, receive, service_error_response(error, answer.request_id))
        except Exception as error:  # noqa: BLE001  (the last place that can answer in the form of all errors)
            _logger.error("request %s failed: %s", in_log(answer.request_id), where_it_failed(error))
            message = "internal error of the server; its log has the details under the request's id"
            await answer.refuse(scope, receive, error_response(500, "internal", message, answer.request_id))

    async def _in_queue(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        if self._running >= self._config.max_queued_requests:
            raise overloaded(f"{self._running} requests are running, which is the limit (serve.max_queued_requests)")
        self._running += 1
        self._get_metrics().queue_length(self._running)
        try:
            async with asyncio.timeout(self._config.request_deadline_seconds):
                await until_client_leaves(receive, lambda watched: self._app(scope, watched, answer.send))
        except TimeoutError:
            seconds = self._config.request_deadline_seconds
            raise unavailable(f"the request was not answered within {seconds:g} seconds") from None
        finally:
            self._running -= 1
            self._get_metrics().queue_length(self._running)

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return scope["method"] == "GET" and (path in OPEN_PATHS or path.startswith(OPEN_FOLDER))

    def _require_token(self, headers: Headers) -> None:
        hashes = self._config.token_hashes
        if not hashes:
            return
        given = headers.get("authorization", "")
        token = given[len(_SCHEME) :] if given.lower().startswith(_SCHEME) else ""
        if not token_is_known(token, hashes):
            raise ServiceError("unauthorized", "a valid bearer token is needed: Authorization: Bearer TOKEN", 401)


def token_is_known(token: str, hashes: Sequence[str]) -> bool:
    """Whether a token has one of the hashes. The duration does not depend on the token or on the hash that matches."""
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    equal = [hmac.compare_digest(digest, known) for known in hashes]
    return any(equal)


class _Answer:
    """Sends an answer with the security headers; `status` is None until it has begun.

    It is recorded once, with its status, before the client has received its end.
    """

    def __init__(self, send: Send, request_id: str, record: Callable[[int], None], *, with_body: bool) -> None:
        self._send = send
        self._record: Callable[[int], None] | None = record
        self._with_body = with_body
        self.request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        elif not self._with_body:
            message = {**message, "body": b""}
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.end()
        await self._send(message)

    def end(self) -> None:
        """Record the answer, unless that is done."""
        if self._record is not None:
            self._record(self.status or _CLIENT_LEFT)
            self._record = None

    async def refuse(self, scope: Scope, receive: Receive, response: JSONResponse) -> None:
        """Answer instead of the application, unless its answer has begun."""
        if self.status is None:
            if response.status_code == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, self.send)
