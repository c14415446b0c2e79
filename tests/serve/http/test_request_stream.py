"""Bodies that are compressed, clients that leave or stall, and other habits of HTTP clients."""

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator

import httpx
import pytest
from serving import ServeUrl, as_json, picture

JSON = {"Content-Type": "application/json"}
BODY = {"images": as_json([picture(1)]), "labels": ["cat", "dog"]}
DATA = json.dumps(BODY).encode()


@pytest.fixture(scope="module")
def client(plain_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plain_url, timeout=30) as client:
        yield client


ORIGIN = "https://example.org"
ASKED = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,x-stainless-os",
}


def send(url: str, data: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(data)
    return connection


class TestGzip:
    @pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "identity"])
    def test_a_compressed_body_has_the_answer_of_the_plain_one(self, client: httpx.Client, encoding: str) -> None:
        plain = client.post("/v1/classify", content=DATA, headers=JSON).json()["results"]
        data = DATA if encoding == "identity" else gzip.compress(DATA)
        answer = client.post("/v1/classify", content=data, headers={**JSON, "Content-Encoding": encoding})
        assert answer.json()["results"] == plain

    def test_so_has_one_in_pieces_and_of_several_streams(self, client: httpx.Client) -> None:
        data = gzip.compress(DATA[:50]) + gzip.compress(DATA[50:])
        pieces = (data[start : start + 7] for start in range(0, len(data), 7))
        answer = client.post("/v1/classify", content=pieces, headers={**JSON, "Content-Encoding": "gzip"})
        assert answer.status_code == 200, answer.text

    def test_it_may_not_become_larger_than_a_plain_one(self, serve_url: ServeUrl) -> None:
        bomb = gzip.compress(b" " * 50_000_000)
        with serve_url(limits={"body_bytes": 100_000}) as url:
            answer = httpx.post(f"{url}/v1/classify", content=bomb, headers={**JSON, "Content-Encoding": "gzip"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    @pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip"])
    def test_other_encodings_are_refused(self, client: httpx.Client, encoding: str) -> None:
        answer = client.post(
            "/v1/classify", content=zlib.compress(DATA), headers={**JSON, "Content-Encoding": encoding}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
        assert "gzip" in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        "data",
        [DATA, gzip.compress(DATA)[:-9], gzip.compress(DATA)[:20] + b"x" * 20],
        ids=["plain", "cut", "wrong"],  # the header of gzip holds the time
    )
    def test_a_damaged_stream_is_refused(self, client: httpx.Client, data: bytes) -> None:
        answer = client.post("/v1/classify", content=data, headers={**JSON, "Content-Encoding": "gzip"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
        assert "gzip" in answer.json()["error"]["message"]


class TestHead:
    @pytest.mark.parametrize("path", ["/", "/v1/health", "/v1/ready", "/static/page.css", "/v1/experts", "/v1/models"])
    def test_it_is_answered_as_get_without_the_body(self, client: httpx.Client, path: str) -> None:
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"]
        assert head.headers["Content-Type"] == get.headers["Content-Type"]

    def test_where_there_is_no_get_it_is_refused(self, client: httpx.Client) -> None:
        assert client.head("/v1/classify").status_code == 405


class TestOtherOrigins:
    def test_none_may_use_the_api_by_default(self, client: httpx.Client) -> None:
        answers = (
            client.options("/v1/classify", headers=ASKED),
            client.post("/v1/classify", json=BODY, headers={"Origin": ORIGIN}),
        )
        assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]

    def test_those_of_the_config_may_and_read_errors_too(self, serve_url: ServeUrl) -> None:
        with (
            serve_url(cors_origins=[ORIGIN], token_hashes=["0" * 64]) as url,
            httpx.Client(base_url=url) as client,
        ):
            allowed = client.options("/v1/classify", headers=ASKED)
            assert allowed.status_code == 200
            assert "authorization" in allowed.headers["Access-Control-Allow-Headers"]
            refused = client.post("/v1/classify", json=BODY, headers={"Origin": ORIGIN})
            assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
            assert "X-Task" in refused.headers["Access-Control-Expose-Headers"]
            other = client.post("/v1/classify", json=BODY, headers={"Origin": "https://elsewhere.org"})
            assert "Access-Control-Allow-Origin" not in other.headers


class TestSlowAndLeavingClients:
    @pytest.mark.parametrize("begun", [b"", b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Le"])
    def test_headers_that_do_not_come_are_not_waited_for(self, serve_url: ServeUrl, begun: bytes) -> None:
        with serve_url(request_deadline_seconds=0.5) as url, send(url, begun) as connection:
            began = time.monotonic()
            assert connection.recv(1) == b"", "the server closes the connection"
            assert time.monotonic() - began < 5.0

    def test_nor_are_those_of_the_next_request(self, serve_url: ServeUrl) -> None:
        with (
            serve_url(request_deadline_seconds=0.5) as url,
            send(url, b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n") as connection,
        ):
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /v1/health HTTP/1.1\r\n")
            while connection.recv(10_000):
                pass

    def test_the_work_for_clients_that_left_stops(self, serve_url: ServeUrl) -> None:
        labels = [f"thing number {number}" for number in range(1000)]
        templates = [f"{number} {{}}" for number in range(10)]
        data = json.dumps({**BODY, "labels": labels, "templates": templates}).encode()
        head = (
            f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        with serve_url() as url, httpx.Client(base_url=url, timeout=30) as client:
            for number in range(4):
                body = data.replace(b"thing", f"the{number}g".encode())[: len(data)]  # a task of its own
                with send(url, f"{head}\r\n\r\n".encode() + body):
                    time.sleep(0.05)
            began = time.monotonic()
            while "mode_serve_queue_length 0.0" not in client.get("/metrics").text:
                assert time.monotonic() - began < 5.0, "they are still worked on"
                time.sleep(0.05)
            lines = client.get("/metrics").text.splitlines()
            assert 'mode_serve_requests_total{route="/v1/classify",status="499"} 4.0' in lines
            assert client.post("/v1/classify", json=BODY).status_code == 200
