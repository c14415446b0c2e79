import asyncio
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mode_ray.config.serve import ServeConfig
from mode_ray.models.encode import Expert
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertUnavailable
from mode_ray.serve.service.local_expert import LocalExpert
from mode_ray.serve.service.local_groups import LocalGroups
from mode_ray.serve.service.metrics import prometheus_metrics
from mode_ray.serve.service.served_run import ServedRun


class Sizes:
    """Remembers the sizes of the batches of expert 0."""

    def __init__(self) -> None:
        self.sizes: list[float] = []
        self.metrics = prometheus_metrics()
        self.metrics.batch_size = self.record

    def record(self, amount: float, **labels: str) -> None:
        assert labels == {"expert": "0"}
        self.sizes.append(amount)


@pytest.fixture(scope="module")
def model(served: ServedRun) -> Expert:
    return Expert(served.experts[0], "cpu")


@pytest.fixture
def make_expert(model: Expert) -> Iterator[Callable[..., tuple[LocalExpert, Sizes]]]:
    made: list[LocalGroups] = []

    def make(**fields: object) -> tuple[LocalExpert, Sizes]:
        sizes = Sizes()
        made.append(LocalGroups({0: model}, ServeConfig.model_validate(fields), sizes.metrics, 1))
        return made[-1].clients[0], sizes

    yield make
    for experts in made:
        experts.close()


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


class TestBatching:
    def test_what_comes_while_a_batch_runs_makes_the_next_one(
        self, make_expert: Callable[..., tuple[LocalExpert, Sizes]], model: Expert
    ) -> None:
        expert, observed = make_expert(max_batch_size=8)
        inputs = [noise(2, seed) for seed in range(9)]

        async def ask() -> list[np.ndarray]:
            return await asyncio.gather(*(expert.encode_images(images) for images in inputs))

        answers = asyncio.run(ask())
        for images, rows in zip(inputs, answers, strict=True):
            np.testing.assert_allclose(rows, model.encode_pixels(images), atol=1e-5)
        assert sum(observed.sizes) == 18
        assert max(observed.sizes) == 8

    def test_a_request_larger_than_a_batch_goes_in_several_passes(
        self, make_expert: Callable[..., tuple[LocalExpert, Sizes]]
    ) -> None:
        expert, observed = make_expert(max_batch_size=4)
        assert asyncio.run(expert.encode_images(noise(10))).shape == (10, 16)
        assert observed.sizes == [4, 4, 2]

    def test_many_texts_come_back_in_their_order(
        self, make_expert: Callable[..., tuple[LocalExpert, Sizes]], model: Expert
    ) -> None:
        expert, _ = make_expert()
        texts = [f"text {number}" for number in range(150)]
        rows = asyncio.run(expert.encode_texts(texts))
        np.testing.assert_allclose(rows, model.encode_texts(texts), atol=1e-5)

    def test_a_full_queue_refuses_and_a_request_given_up_leaves_it(
        self, make_expert: Callable[..., tuple[LocalExpert, Sizes]]
    ) -> None:
        expert, observed = make_expert(max_queued_requests=2)

        async def ask() -> None:
            waiting = [asyncio.create_task(expert.encode_images(noise(1))) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(ExpertBusy):
                await expert.encode_images(noise(1))
            waiting[1].cancel()
            await waiting[0]

        asyncio.run(ask())
        assert sum(observed.sizes) == 1

    def test_a_closed_expert_is_unavailable(self, make_expert: Callable[..., tuple[LocalExpert, Sizes]]) -> None:
        expert, _ = make_expert()
        expert._experts.close()
        with pytest.raises(ExpertUnavailable):
            asyncio.run(expert.encode_images(noise(1)))
