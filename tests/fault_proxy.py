"""An S3 endpoint that fails: an HTTP proxy before a real server, with faults by a schedule."""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

from http_server import serving

Fault = Literal["500", "503", "slow", "cut", "cut after", "half"]
"""An error answered, an answer delayed, a connection cut before the request takes effect, after, amid the answer."""
Schedule = Callable[[str, str, int], Fault | None]
"""Method, path with query and the number of earlier requests of both, to the fault."""

SLOW_SECONDS = 0.3
_ERRORS = {"500": "InternalError", "503": "SlowDown"}
_OF_A_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")


def nothing_fails(method: str, path: str, earlier: int) -> Fault | None:
    """A server in good health."""
    return None


def at_random(seed: int, shares: dict[Fault, float]) -> Schedule:
    """Faults in given shares of the requests; the same request in the same turn always meets the same."""

    def schedule(method: str, path: str, earlier: int) -> Fault | None:
        generator = random.Random(f"{seed} {method} {path} {earlier}")
        drawn = generator.random()
        for fault, share in shares.items():
            drawn -= share
            if drawn < 0:
                return fault
        return None

    return schedule


def _kept(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers that are passed on."""
    return {name: text for name, text in headers if name.lower() not in _OF_A_CONNECTION}


@dataclass
class FaultProxy:
    """A running proxy.

    Attributes:
        endpoint: Its URL.
        schedule: May be changed while it runs.
        met: How often each fault happened.
    """

    endpoint: str
    schedule: Schedule
    met: Counter[str] = field(default_factory=Counter)


@contextmanager
def fault_proxy(server: str, schedule: Schedule = nothing_fails) -> Iterator[FaultProxy]:
    """Run a proxy before a server, on a port of its own of the loopback."""
    upstream = urlsplit(server).netloc
    asked: Counter[tuple[str, str]] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

        def _pass_on(self) -> None:
            with lock:
                earlier = asked[self.command, self.path]
                asked[self.command, self.path] += 1
                fault = proxy.schedule(self.command, self.path, earlier)
                proxy.met[fault or "none"] += 1
            body = self._body()
            if fault == "cut":
                self._cut()
                return
            if fault in _ERRORS:
                error = f"<Error><Code>{_ERRORS[fault]}</Code><Message>injected</Message></Error>".encode()
                self._answer(int(fault), {"Content-Type": "application/xml"}, error, len(error))
                return
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            connection = http.client.HTTPConnection(upstream)
            connection.request(self.command, self.path, body, _kept(self.headers.items()))
            response = connection.getresponse()
            content = response.read()
            headers = _kept(response.getheaders())
            length = int(response.headers.get("Content-Length", len(content)))
            connection.close()
            if fault == "cut after":
                self._cut()
            elif fault == "half":
                self._answer(response.status, headers, content[: len(content) // 2], length)
                self._cut()
            else:
                self._answer(response.status, headers, content, length)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)

        def _answer(self, status: int, headers: dict[str, str], content: bytes, length: int) -> None:
            self.send_response_only(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            self.wfile.flush()

        def _cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815 - as the library calls them

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A client that went away is no matter."""

    with serving(Server(("127.0.0.1", 0), Handler)) as httpd:
        proxy = FaultProxy(f"http://127.0.0.1:{httpd.server_port}", schedule)
        yield proxy
