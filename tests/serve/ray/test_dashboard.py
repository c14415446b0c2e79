"""The client of Ray Serve's REST API: what it sends, and what it says of refusals."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from http_server import serving

from mode_ray.errors import DataError, UsageError
from mode_ray.serve.ray.dashboard import ServeDashboard
from mode_ray.serve.ray.live import submit


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server with one answer; yields its address and the requests that it got."""
    requests: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            requests.append((self.command, self.path, sent))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = _answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}", requests


def test_it_reads_and_submits_the_list_of_applications() -> None:
    with answering(200, b'{"applications": {}}') as (address, requests):
        dashboard = ServeDashboard(f"{address}/")
        assert dashboard.get_serve_details() == {"applications": {}}
        dashboard.deploy_applications({"applications": [1]})
    assert [request[:2] for request in requests] == [(name, "/api/serve/applications/") for name in ("GET", "PUT")]
    assert json.loads(requests[1][2]) == {"applications": [1]}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_explained(status: int) -> None:
    with answering(status, b"no") as (address, _), pytest.raises(UsageError, match="refuses access"):
        ServeDashboard(address).get_serve_details()


def test_a_list_that_ray_serve_refuses_comes_with_its_reason() -> None:
    with (
        answering(400, b"no such\nfield") as (address, _),
        pytest.raises(DataError, match="status 400: no such field"),
    ):
        submit(ServeDashboard(address), {})


@pytest.mark.parametrize("status", [200, 404])
def test_another_server_is_not_a_dashboard(status: int) -> None:
    with (
        answering(status, b"<html>") as (address, _),
        pytest.raises(UsageError, match=f"no Ray dashboard at {address}"),
    ):
        ServeDashboard(address).get_serve_details()


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "file:///etc/passwd"])
def test_an_address_that_is_no_url_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="http://"):
        ServeDashboard(address)
