"""Metrics without Ray: names, labels and amounts on the page that Prometheus reads."""

from mode_ray.serve.metrics import prometheus_metrics


def page() -> str:
    metrics = prometheus_metrics()
    metrics.count_request("/v1/classify", 200)
    metrics.count_request("/v1/classify", 200)
    metrics.count_request("/v1/classify", 503)
    metrics.observe_step("decode", 0.004)
    metrics.observe_expert(3, 0.04)
    metrics.observe_batch(3, 32)
    metrics.observe_experts(2)
    metrics.count_degraded()
    metrics.count_cache(hit=True)
    metrics.count_cache(hit=False)
    metrics.set_queue(7)
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
