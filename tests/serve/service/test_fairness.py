"""Requests take turns: a large one does not hold up the others, and one whose client left is not worked on."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from serving import MakeService, picture

from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.local_expert import LocalExpert
from mode_ray.serve.service.task_definition import TaskDefinition
from mode_ray.serve.service.turns import Rows, Turns

MANY = 1000
TEXTS_AT_ONCE = 16
EncodeTexts = Callable[[Sequence[str]], Rows]


class Order:
    """Records which texts the experts encode, and holds back all but the first slices until `go`."""

    def __init__(self, service: EnsembleService) -> None:
        self.encoded: list[str] = []
        self.go = threading.Event()
        self.began = threading.Event()
        for client in service._clients.values():
            assert isinstance(client, LocalExpert)
            client._experts._turns = Fixed()
            model = client._experts.open_model(client.id)
            model.encode_texts = self._recording(model.encode_texts)  # type: ignore[method-assign,assignment]

    def _recording(self, encode: EncodeTexts) -> EncodeTexts:
        def recorded(texts: Sequence[str]) -> Rows:
            self.began.set()
            assert self.go.wait(30.0)
            self.encoded += texts
            return encode(texts)

        return recorded


class Fixed(Turns):
    """Slices of a fixed size, on every machine."""

    def encode(self, function: EncodeTexts, texts: Sequence[str]) -> Rows:
        assert self.size == TEXTS_AT_ONCE
        return function(texts)


def task(name: str, labels: int) -> TaskDefinition:
    return TaskDefinition(
        labels=tuple(f"{name} number {number}" for number in range(labels)), templates=("{}",), rule="soft"
    )


class TestTurns:
    def test_a_small_task_waits_for_one_slice_of_each_large_one(self, make_service: MakeService) -> None:
        service = make_service()

        async def ask() -> None:
            order = Order(service)
            large = [asyncio.create_task(service.score([picture(1)], task(name, MANY))) for name in ("cat", "dog")]
            await asyncio.to_thread(order.began.wait, 30.0)
            small = asyncio.create_task(service.score([picture(1)], task("bus", 1)))
            await asyncio.sleep(0.3)  # its only text is in the queues of the experts
            order.go.set()
            await small
            others = len([text for text in order.encoded if not text.startswith("bus")])
            assert others < MANY, f"{others} texts of {2 * MANY} for each of three experts were encoded before"
            for running in large:
                running.cancel()

        asyncio.run(ask())

    def test_the_same_task_is_encoded_once_for_all_that_ask(self, make_service: MakeService) -> None:
        service = make_service()

        async def ask() -> None:
            order = Order(service)
            order.go.set()
            await asyncio.gather(*(service.score([picture(seed)], task("cat", 50)) for seed in range(4)))
            assert len(order.encoded) == 50 * len(service._clients)

        asyncio.run(ask())


class TestClientsThatLeft:
    def test_nothing_more_is_encoded_for_them_and_the_next_one_resumes(self, make_service: MakeService) -> None:
        service = make_service()

        async def ask() -> None:
            order = Order(service)
            left = asyncio.create_task(service.score([picture(1)], task("cat", MANY)))
            await asyncio.to_thread(order.began.wait, 30.0)
            left.cancel()
            await asyncio.sleep(0)
            order.go.set()
            await asyncio.sleep(0.3)
            stopped = len(order.encoded)
            assert stopped <= TEXTS_AT_ONCE * len(service._clients)
            await service.score([picture(1)], task("cat", MANY))
            assert len(order.encoded) <= MANY * len(service._clients) + stopped

        asyncio.run(ask())

    def test_their_images_are_not_encoded(self, make_service: MakeService) -> None:
        service = make_service(max_batch_size=2)

        async def ask() -> None:
            batches: list[int] = []
            go = threading.Event()
            for client in service._clients.values():
                assert isinstance(client, LocalExpert)
                model = client._experts.open_model(client.id)
                encode = model.pixel_features

                def recorded(
                    images_bhw3: npt.NDArray[np.uint8],
                    encode: Callable[[npt.NDArray[np.uint8]], torch.Tensor] = encode,
                ) -> torch.Tensor:
                    assert go.wait(30.0)
                    batches.append(len(images_bhw3))
                    return encode(images_bhw3)

                model.pixel_features = recorded  # type: ignore[method-assign]
            left = asyncio.create_task(service.embed_images([picture(seed) for seed in range(40)]))
            await asyncio.sleep(0.5)
            left.cancel()
            await asyncio.sleep(0)
            go.set()
            await service.embed_images([picture(1)])
            assert sum(batches) <= (2 + 1) * len(service._clients)

        asyncio.run(ask())
