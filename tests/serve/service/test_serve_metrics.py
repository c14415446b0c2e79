"""Metrics without Ray: names, labels and amounts on the page that Prometheus reads."""

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import EXPERTS, ServeUrl, as_json, half_a_request, picture

from mode_ray.serve.service.expert_client import ExpertUnavailable
from mode_ray.serve.service.metrics import prometheus_metrics


def page() -> str:
    metrics = prometheus_metrics()
    for status in ("200", "200", "503"):
        metrics.requests(1.0, route="/v1/classify", status=status)
    metrics.step_seconds(0.004, step="decode")
    metrics.expert_seconds(0.04, expert="3")
    metrics.batch_size(32, expert="3")
    metrics.experts_per_request(2)
    metrics.degraded(1.0)
    metrics.task_cache(1.0, result="hit")
    metrics.task_cache(1.0, result="miss")
    metrics.queue_length(7)
    exposition = metrics.exposition()
    assert exposition is not None
    content, content_type = exposition
    assert content_type.startswith("text/plain")
    return content.decode()


class TestPage:
    def test_it_shows_every_family_with_its_labels(self) -> None:
        lines = page().splitlines()
        for line in (
            'mode_serve_requests_total{route="/v1/classify",status="200"} 2.0',
            'mode_serve_requests_total{route="/v1/classify",status="503"} 1.0',
            'mode_serve_step_seconds_bucket{le="0.005",step="decode"} 1.0',
            'mode_serve_step_seconds_bucket{le="0.002",step="decode"} 0.0',
            'mode_serve_expert_seconds_count{expert="3"} 1.0',
            'mode_serve_batch_size_sum{expert="3"} 32.0',
            "mode_serve_experts_per_request_sum 2.0",
            "mode_serve_degraded_total 1.0",
            'mode_serve_task_cache_total{result="hit"} 1.0',
            'mode_serve_task_cache_total{result="miss"} 1.0',
            "mode_serve_queue_length 7.0",
        ):
            assert line in lines

    def test_services_of_one_process_count_for_themselves(self) -> None:
        first, second = ([line for line in page().splitlines() if "_created" not in line] for _ in range(2))
        assert first == second, "a second service neither fails on the names nor adds to the first"


class Scrape:
    """The page of a server as it is now."""

    def __init__(self, client: httpx.Client) -> None:
        answer = client.get("/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = text_string_to_metric_families(answer.text)
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Of one series; 0 where there is none, as nothing was counted."""
        found = [one.value for one in self._samples if one.name == f"mode_serve_{name}" and one.labels == labels]
        return found[0] if found else 0.0


class TestEndpoint:
    @pytest.fixture
    def client(self, serve_url: ServeUrl) -> Iterator[httpx.Client]:
        with serve_url() as url, httpx.Client(base_url=url, timeout=30) as client:
            yield client

    def test_it_counts_and_times_what_requests_did(self, client: httpx.Client) -> None:
        pictures = [picture(seed) for seed in range(3)]
        bodies: list[dict[str, list[str]]] = [{"labels": ["cat", "dog"]}, {"labels": ["cat", "dog"]}, {"labels": []}]
        for body in bodies:
            client.post("/v1/classify", json={"images": as_json(pictures), **body})
        client.get("/v1/nothing")
        scrape = Scrape(client)
        assert scrape.value("requests_total", route="/v1/classify", status="200") == 2
        assert scrape.value("requests_total", route="/v1/classify", status="422") == 1
        assert scrape.value("requests_total", route="unknown", status="404") == 1
        assert scrape.value("step_seconds_count", step="ensemble") == 2
        assert scrape.value("step_seconds_count", step="route") == 1, "the second time it is in the cache"
        assert scrape.value("step_seconds_count", step="decode") >= 2
        assert scrape.value("step_seconds_sum", step="decode") > 0.0
        assert scrape.value("task_cache_total", result="hit") == 1
        assert scrape.value("task_cache_total", result="miss") == 1, "a wrong request is not looked up"
        assert scrape.value("experts_per_request_count") == 2
        assert scrape.value("experts_per_request_sum") == 2 * EXPERTS
        for expert in map(str, range(EXPERTS)):
            assert scrape.value("batch_size_sum", expert=expert) == 2 * len(pictures)
            assert scrape.value("expert_seconds_count", expert=expert) == 2
            assert scrape.value("expert_seconds_sum", expert=expert) > 0.0
        assert scrape.value("degraded_total") == 0

    def test_answers_without_an_expert_are_counted(self, serve_url: ServeUrl) -> None:
        body = {"images": as_json([picture(1)]), "labels": ["cat", "dog"]}
        down = {1: ExpertUnavailable("down")}
        with serve_url(failing=down) as url, httpx.Client(base_url=url, timeout=30) as client:
            assert client.post("/v1/classify", json=body).json()["left_out"] == [1]
            scrape = Scrape(client)
        assert scrape.value("degraded_total") == 1
        assert [scrape.value("expert_seconds_count", expert=expert) for expert in "012"] == [1, 0, 1]

    def test_the_queue_has_the_requests_that_are_not_answered_yet(self, client: httpx.Client) -> None:
        assert Scrape(client).value("queue_length") == 0
        with half_a_request(str(client.base_url)), half_a_request(str(client.base_url)):
            assert Scrape(client).value("queue_length") == 2
