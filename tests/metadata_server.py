"""A metadata server of a spot machine, for tests: nobody takes the machine back until a test says so."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from http_server import serving


class MetadataServer(ThreadingHTTPServer):
    """Answers as EC2's (version 2, only with a session token) and Compute Engine's metadata servers do."""

    end_unix_seconds: float | None = None
    """When the machine is taken back; set by a test."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: MetadataServer

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def answer(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        is_token = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self.answer(200, "session") if is_token else self.answer(400)

    def do_GET(self) -> None:
        end = self.server.end_unix_seconds
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "session":
                self.answer(401)
            elif end is not None:
                self.answer(
                    200,
                    json.dumps(
                        {"action": "terminate", "time": f"{datetime.fromtimestamp(end, UTC):%Y-%m-%dT%H:%M:%SZ}"}
                    ),
                )
            else:
                self.answer(404)
        elif self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
            self.answer(200, "FALSE" if end is None else "TRUE")
        else:
            self.answer(403)


@contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    """A running server on a free port."""
    with serving(MetadataServer(("127.0.0.1", 0), Handler)) as running:
        yield running
