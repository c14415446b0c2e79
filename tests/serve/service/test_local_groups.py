"""How many experts of a process work at the same time, and with how many threads."""

import asyncio
import threading
import time

import numpy as np
import pytest

from mode_ray.config.serve import ServeConfig
from mode_ray.models.encode import Expert
from mode_ray.models.together import load_experts
from mode_ray.serve.service.expert_client import ExpertUnavailable
from mode_ray.serve.service.local_groups import LocalGroups
from mode_ray.serve.service.metrics import prometheus_metrics
from mode_ray.serve.service.served_run import ServedRun

IMAGES = np.zeros((1, 16, 16, 3), np.uint8)


@pytest.fixture
def models(served: ServedRun) -> dict[int, Expert]:
    return load_experts(served.experts, "cpu")


@pytest.mark.parametrize(
    ("threads", "threads_per_expert", "at_once", "threads_of_a_pass"),
    [
        pytest.param(0, 1, 1, 1, id="less than one logical CPU"),
        pytest.param(2, 1, 2, 1, id="one core for each of two passes"),
        pytest.param(2, 2, 1, 2, id="both cores for one pass"),
        pytest.param(12, 1, 3, 4, id="more cores than experts"),
        pytest.param(1, 4, 1, 4, id="a pass has the threads that it was given"),
    ],
)
def test_threads_are_shared(
    models: dict[int, Expert], threads: int, threads_per_expert: int, at_once: int, threads_of_a_pass: int
) -> None:
    assert len(models) == 3
    most = _MostAtOnce(models)
    config = ServeConfig(threads_per_expert=threads_per_expert)
    groups = LocalGroups(models, config, prometheus_metrics(), threads)

    async def ask() -> None:
        await asyncio.gather(*(client.encode_images(IMAGES) for client in groups.clients.values()))

    asyncio.run(ask())
    groups.close()
    assert most.seen == at_once
    assert [model.threads for model in models.values()] == [threads_of_a_pass] * 3


def test_closed_groups_refuse(models: dict[int, Expert]) -> None:
    groups = LocalGroups(models, ServeConfig(), prometheus_metrics(), 1)
    groups.close()
    with pytest.raises(ExpertUnavailable, match="expert 1 is closed"):
        asyncio.run(groups.clients[1].encode_images(IMAGES))


class _MostAtOnce:
    """Counts the models that compute at the same time; each pass lasts 0.2 seconds."""

    def __init__(self, models: dict[int, Expert]) -> None:
        self.seen = 0
        self._now = 0
        self._lock = threading.Lock()
        for model in models.values():
            self._watch(model)

    def _watch(self, model: Expert) -> None:
        compute = model.pixel_features

        def watched(images_bhw3: np.ndarray) -> object:
            with self._lock:
                self._now += 1
                self.seen = max(self.seen, self._now)
            time.sleep(0.2)
            with self._lock:
                self._now -= 1
            return compute(images_bhw3)

        model.pixel_features = watched  # type: ignore[method-assign,assignment]
