"""Services opened and closed again and again in one process leave nothing large behind."""

import asyncio
import gc
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from pydantic import ValidationError
from serving import as_json, picture, service_of, url_of_service

from mode_ray.cli.serve import serve
from mode_ray.config.serve import ServeConfig
from mode_ray.errors import UsageError
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


def classify_without_socket(service: EnsembleService) -> Sequence[float]:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(lambda: service, service.config))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.post("/v1/classify", json=BODY)

    answer = asyncio.run(ask())
    assert answer.status_code == 200
    scores: Sequence[float] = answer.json()["results"][0]["scores"]
    return scores


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


class TestRuntime:
    def test_openvino_gives_the_scores_of_torch(self, served: ServedRun, tmp_path: Path) -> None:
        with service_of(served, tmp_path) as service:
            right = classify_without_socket(service)
        with service_of(served, tmp_path, runtime="openvino") as service:
            assert classify_without_socket(service) == pytest.approx(right, abs=1e-5)
            for client in service._clients.values():
                assert isinstance(client, LocalExpert)
                features = client._experts.open_model(client.id).image_tower.features
                assert not isinstance(features, torch.nn.Module), "torch computes this one"

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"precision": "float16"}, "precision: float16 is not for runtime: openvino; set bfloat16 or float32"),
            ({"device": "cuda"}, "runtime: openvino is for CPUs, and device is cuda: set device: cpu"),
        ],
    )
    def test_openvino_is_refused_where_it_cannot_compute(self, fields: dict[str, str], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            ServeConfig.model_validate({"runtime": "openvino", **fields})

    @pytest.mark.parametrize("in_process", [False, True])
    def test_a_machine_without_openvino(
        self, in_process: bool, served_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(UsageError, match=r"^OpenVINO is not installed"):
            serve(str(served_folder), ["serve.runtime=openvino"], in_process)
