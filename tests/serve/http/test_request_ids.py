"""One id a request, whoever gives it: our own server, or the middleware that Ray Serve's proxy has in front."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import RequestIdMiddleware
from serving import MakeService
from starlette.types import ASGIApp

from mode_ray.config.serve import ServeConfig
from mode_ray.serve.http.api import create_app
from mode_ray.serve.in_process import uvicorn_server

ODD = "mine, \u20ac 1"


@pytest.fixture
def app(make_service: MakeService) -> ASGIApp:
    service = make_service()
    return create_app(lambda: service, service.config)


def refused(app: Any, given: str | None) -> httpx.Response:  # noqa: ANN401 - uvicorn and Starlette type it differently
    """The answer to a request that is wrong, so that its body names the id."""
    headers = [] if given is None else [(b"X-Request-ID", given.encode())]

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/route", json={}, headers=headers)

    return asyncio.run(ask())


def only_id(answer: httpx.Response) -> str:
    """The id of an answer, which is one in header and body."""
    (given,) = answer.headers.get_list("X-Request-ID")
    raw = next(value for name, value in answer.headers.raw if name.lower() == b"x-request-id")
    assert answer.json()["error"]["request_id"] == raw.decode("latin-1")
    return str(given)


def logged_ids(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.name == "mode_ray.serve.access"]
    return [line.partition(" POST ")[0] for line in lines]


class TestInProcess:
    def test_a_plain_id_is_taken_and_any_other_replaced(self, app: ASGIApp, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "mode_ray")
        served = uvicorn_server(app, ServeConfig()).config.app
        ids = [only_id(refused(served, given)) for given in (None, "", "mine-1", ODD, "x" * 65)]
        assert ids[2] == "mine-1"
        assert len(set(ids)) == len(ids)
        assert not {"", ODD, "x" * 65} & set(ids)
        assert logged_ids(caplog) == ids


class TestBehindRayServe:
    def test_the_proxys_id_is_the_only_one_even_where_we_would_not_have_taken_it(
        self, app: ASGIApp, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "mode_ray")
        behind = RequestIdMiddleware(app)
        made, mine, odd, long = (only_id(refused(behind, given)) for given in (None, "mine-1", ODD, "x" * 1000))
        assert len(made) > 8
        assert (mine, odd, long) == ("mine-1", ODD, "x" * 1000)
        in_log = logged_ids(caplog)
        assert in_log[:2] == [made, mine]
        assert in_log[2].startswith("mine, ")
        assert in_log[2].isascii()
        assert in_log[3] == "x" * 64
