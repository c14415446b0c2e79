"""Services opened and closed again and again in one process leave nothing large behind."""

import asyncio
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import as_json, picture, service_of, url_of_service

from mode_ray.serve.http.api import create_app
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.local_expert import LocalExpert
from mode_ray.serve.service.served_run import ServedRun

ROUNDS, DRILL_ROUNDS, WARM_UP_ROUNDS = 20, 200, 3
# A service of one expert holds 60 MB, one of three 115 MB. What the allocator keeps to itself is under 100 MB.
MOST_GROWTH_BYTES = 250_000_000
BODY = {"images": as_json([picture(1)]), "labels": ["cat", "dog"]}


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def classify_without_socket(service: EnsembleService) -> None:
    async def ask() -> int:
        transport = httpx.ASGITransport(create_app(lambda: service, service.config))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return int((await client.post("/v1/classify", json=BODY)).status_code)

    assert asyncio.run(ask()) == 200


class TestClose:
    def test_a_closed_service_that_is_still_referenced_holds_no_model_and_no_encoder(
        self, served: ServedRun, tmp_path: Path
    ) -> None:
        with service_of(served, tmp_path) as service:
            classify_without_socket(service)
            experts = [client for client in service._clients.values() if isinstance(client, LocalExpert)]
            large: list[weakref.ref[Any]] = [weakref.ref(expert._experts.open_model(expert.id)) for expert in experts]
            large += [weakref.ref(service._tasks._open_router()), weakref.ref(service._tasks._cache)]
            assert len(large) == served.n + 2
        gc.collect()
        assert [reference() for reference in large] == [None] * len(large)

    def test_requests_to_a_closed_service_get_503(self, served: ServedRun, tmp_path: Path) -> None:
        with service_of(served, tmp_path) as service:
            transport = httpx.ASGITransport(create_app(lambda: service, service.config))

        async def ask() -> tuple[httpx.Response, httpx.Response]:
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.get("/v1/ready"), await client.post("/v1/route", json={"texts": ["a cat"]})

        ready, route = asyncio.run(ask())
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert (route.status_code, route.json()["error"]["code"]) == (503, "unavailable")

    def test_memory_does_not_grow_with_the_number_of_services(self, served: ServedRun, tmp_path: Path) -> None:
        small = replace(served, experts={0: served.experts[0]})
        for number in range(ROUNDS + WARM_UP_ROUNDS):
            if number == WARM_UP_ROUNDS:
                before = resident_bytes()
            with service_of(small, tmp_path) as service:
                classify_without_socket(service)
            grown = resident_bytes() - before if number >= WARM_UP_ROUNDS else 0
            assert grown < MOST_GROWTH_BYTES, f"after {number + 1} services"

    @pytest.mark.drill
    def test_memory_does_not_grow_over_hundreds_of_servers(self, served: ServedRun, tmp_path: Path) -> None:
        for number in range(DRILL_ROUNDS + WARM_UP_ROUNDS):
            if number == WARM_UP_ROUNDS:
                before = resident_bytes()
            with service_of(served, tmp_path) as service, url_of_service(service) as url:
                assert httpx.post(f"{url}/v1/classify", json=BODY, timeout=30).status_code == 200
            grown = resident_bytes() - before if number >= WARM_UP_ROUNDS else 0
            assert grown < MOST_GROWTH_BYTES, f"after {number + 1} servers"
