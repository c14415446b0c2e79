"""Experts behind Ray Serve's handles, in Serve's local testing mode: real deployments, without a cluster."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from tiny_run import save_expert

from mode_ray.config.serve import ServeConfig
from mode_ray.models.encode import Expert
from mode_ray.serve.applications import expert
from mode_ray.serve.ray.deployments import ExpertArguments
from mode_ray.serve.ray.handle_expert import HandleExpert, HandleExperts
from mode_ray.serve.service.expert_client import ExpertBusy, ExpertDescription, ExpertUnavailable
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location

DEADLINE_SECONDS = 0.3
Answer = TypeVar("Answer")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@serve.deployment
class Scripted:
    """An expert that answers, refuses or hangs as it is told by its texts."""

    async def describe(self) -> dict[int, ExpertDescription]:
        return {7: ExpertDescription(logit_scale=1.0, dimension=2, image_size=(32, 32), source="scripted")}

    async def encode_texts(self, texts: list[str], sources: dict[int, str]) -> Any:  # noqa: ANN401
        if texts == ["hang"]:
            await asyncio.sleep(60.0)
        if texts == ["busy"]:
            raise ExpertBusy("full")
        if texts == ["dead"]:
            raise ActorDiedError
        if texts == ["too large"]:
            raise grpc.RpcError("RESOURCE_EXHAUSTED")
        return {number: np.ones((len(texts), 2), np.float32) for number in sources}


@pytest.fixture(scope="module")
def scripted() -> DeploymentHandle[Any]:
    return serve.run(Scripted.bind(), name="scripted", _local_testing_mode=True)  # type: ignore[attr-defined]


class Replaced:
    """A handle whose only replica has died: describing waits for the new one, which comes with `back`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self.back = asyncio.Event()
        self.encode_texts = handle.encode_texts
        self.describe = self

    def remote(self) -> "asyncio.Task[Any]":
        async def described() -> object:
            await self.back.wait()
            return await self._handle.describe.remote()

        return asyncio.get_running_loop().create_task(described())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("expert") / "model"
    save_expert(Location.parse(str(path)), seed=1)
    return path


def client(handle: DeploymentHandle[Any], on_other_weights: Callable[[], None] = lambda: None) -> HandleExpert:
    return HandleExperts(
        "expert-3", ServeConfig(expert_deadline_seconds=DEADLINE_SECONDS), on_other_weights, lambda _: handle
    ).client(3)


async def in_time(call: Awaitable[object]) -> object:
    """As the service calls: with a deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await call


async def eventually(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer, as soon as the expert is not held to be down."""
    async with asyncio.timeout(10.0):
        while True:
            try:
                return await call()
            except ExpertUnavailable:
                await asyncio.sleep(0.01)


class TestAnswers:
    def test_they_are_the_models(self, folder: Path, served_folder: Path) -> None:
        arguments = ExpertArguments(run=str(served_folder), expert=2, folder=str(folder))
        asked = client(serve.run(expert(arguments), name="expert-3", _local_testing_mode=True))
        model = Expert(Location.parse(str(folder)))

        async def ask() -> tuple[np.ndarray, np.ndarray, ExpertDescription]:
            return await asked.encode_images(IMAGES), await asked.encode_texts(["a cat"]), await asked.describe()

        images, texts, description = asyncio.run(ask())
        np.testing.assert_allclose(images, model.encode_pixels(IMAGES), atol=1e-6)
        np.testing.assert_allclose(texts, model.encode_texts(["a cat"]), atol=1e-6)
        assert description.dimension == model.dimension
        assert description.source.startswith(f"{folder}#")

    def test_several_experts_of_one_application_are_asked_together(self, served: ServedRun) -> None:
        arguments = ExpertArguments(run=served.run.uri, experts=(0, 1, 2))
        handle = serve.run(expert(arguments), name="experts", _local_testing_mode=True)
        experts = HandleExperts("experts", ServeConfig(), lambda: None, lambda _: handle)
        images_bhw3 = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)

        async def ask() -> list[np.ndarray]:
            clients = [experts.client(10 + number, number) for number in range(3)]
            assert [client.id for client in clients] == [10, 11, 12]
            assert len({(await client.describe()).source for client in clients}) == 3
            images = [client.encode_images(images_bhw3) for client in clients]
            return await asyncio.gather(*images, *(client.encode_texts(["a cat"]) for client in clients))

        found = asyncio.run(ask())
        for number, folder in served.experts.items():
            model = Expert(folder, "cpu")
            np.testing.assert_allclose(found[number], model.encode_pixels(images_bhw3), atol=1e-6)
            np.testing.assert_allclose(found[3 + number], model.encode_texts(["a cat"]), atol=1e-6)

    def test_an_expert_that_the_application_does_not_have_is_unavailable(
        self, scripted: DeploymentHandle[Any]
    ) -> None:
        experts = HandleExperts("experts", ServeConfig(), lambda: None, lambda _: scripted)
        with pytest.raises(ExpertUnavailable, match="experts has no expert 1"):
            asyncio.run(experts.client(1, 1).describe())

    def test_none_is_of_other_weights_than_were_described(self, folder: Path, served_folder: Path) -> None:
        arguments = ExpertArguments(run=str(served_folder), expert=2, folder=str(folder))
        told: list[str] = []
        handles = {"first": serve.run(expert(arguments), name="expert-3", _local_testing_mode=True)}
        asked = HandleExperts(
            "expert-3",
            ServeConfig(expert_deadline_seconds=30.0),
            lambda: told.append("other"),
            lambda _: handles["first"],
        ).client(3)

        async def ask() -> None:
            before = await asked.describe()
            save_expert(Location.parse(str(folder)), seed=2)
            asked._experts._handle = serve.run(expert(arguments), name="expert-3", _local_testing_mode=True)
            with pytest.raises(ExpertUnavailable, match="now has the weights of"):
                await asked.encode_images(IMAGES)
            assert before.source == (await asked.describe()).source

        asyncio.run(ask())
        assert told == ["other"]


class TestFailures:
    def test_a_full_queue_is_busy(self, scripted: DeploymentHandle[Any]) -> None:
        with pytest.raises(ExpertBusy, match="expert-3"):
            asyncio.run(client(scripted).encode_texts(["busy"]))

    def test_after_an_error_of_grpc_the_expert_counts_as_down(self, scripted: DeploymentHandle[Any]) -> None:
        with pytest.raises(ExpertUnavailable, match="expert-3: RpcError"):
            asyncio.run(client(scripted).encode_texts(["too large"]))

    def test_an_application_that_is_not_there_is_tried_again_later(self, scripted: DeploymentHandle[Any]) -> None:
        there = False

        def resolve(name: str) -> DeploymentHandle[Any]:
            if not there:
                raise RayServeException(f"Application '{name}' does not exist.")
            return scripted

        async def ask() -> None:
            nonlocal there
            asked = HandleExperts(
                "expert-3", ServeConfig(expert_deadline_seconds=DEADLINE_SECONDS), lambda: None, resolve
            ).client(3)
            with pytest.raises(ExpertUnavailable, match="no application expert-3"):
                await asked.describe()
            there = True
            assert (await eventually(asked.describe)).dimension == 2

        asyncio.run(ask())


class TestDeath:
    def test_calls_after_the_death_of_the_only_replica_do_not_wait_for_the_next_one(
        self, scripted: DeploymentHandle[Any]
    ) -> None:
        async def ask() -> None:
            asked = HandleExperts(
                "expert-3", ServeConfig(expert_deadline_seconds=30.0), lambda: None, lambda _: scripted
            ).client(3)
            await asked.describe()
            replaced = Replaced(scripted)
            asked._experts._handle = cast("DeploymentHandle[Any]", replaced)
            with pytest.raises(ExpertUnavailable, match="ActorDiedError"):
                await asked.encode_texts(["dead"])
            began = time.monotonic()
            for _ in range(20):
                with pytest.raises(ExpertUnavailable, match="does not answer"):
                    await asked.encode_texts(["a cat"])
            assert time.monotonic() - began < 5.0
            replaced.back.set()
            await eventually(lambda: asked.encode_texts(["a cat"]))

        asyncio.run(ask())

    def test_where_another_replica_lives_no_later_call_is_refused(self, scripted: DeploymentHandle[Any]) -> None:
        async def ask() -> None:
            asked = HandleExperts(
                "expert-3", ServeConfig(expert_deadline_seconds=30.0), lambda: None, lambda _: scripted
            ).client(3)
            with pytest.raises(ExpertUnavailable, match="ActorDiedError"):
                await asked.encode_texts(["dead"])
            assert (await asked.encode_texts(["a cat"])).shape == (1, 2)

        asyncio.run(ask())


class TestSilence:
    def test_a_call_that_takes_long_is_none_while_a_probe_is_answered(self, scripted: DeploymentHandle[Any]) -> None:
        async def ask() -> None:
            asked = HandleExperts(
                "expert-3", ServeConfig(expert_deadline_seconds=30.0), lambda: None, lambda _: scripted
            ).client(3)
            await asked.describe()
            slow = asyncio.create_task(asked.encode_texts(["hang"]))
            await asyncio.sleep(0.8)  # it is suspected after half a second
            assert asked._experts._probe is not None
            assert (await asked.encode_texts(["a cat"])).shape == (1, 2)
            slow.cancel()

        asyncio.run(ask())

    def test_after_one_deadline_the_others_do_not_wait_until_it_answers_again(
        self, scripted: DeploymentHandle[Any]
    ) -> None:
        async def ask() -> None:
            asked = client(scripted)
            await asked.describe()
            with pytest.raises(TimeoutError):
                await in_time(asked.encode_texts(["hang"]))
            with pytest.raises(ExpertUnavailable, match="does not answer"):
                await asked.encode_texts(["a cat"])
            await eventually(lambda: asked.encode_texts(["a cat"]))

        asyncio.run(ask())

    def test_one_slow_call_among_answered_ones_is_no_silence(self, scripted: DeploymentHandle[Any]) -> None:
        async def ask() -> None:
            asked = client(scripted)
            await asked.describe()
            hanging = asyncio.create_task(in_time(asked.encode_texts(["hang"])))
            await asyncio.sleep(DEADLINE_SECONDS / 2)
            await asked.encode_texts(["a cat"])
            with pytest.raises(TimeoutError):
                await hanging
            await asked.encode_texts(["a dog"])

        asyncio.run(ask())

    def test_a_client_that_leaves_early_says_nothing_about_the_expert(self, scripted: DeploymentHandle[Any]) -> None:
        async def ask() -> None:
            asked = client(scripted)
            await asked.describe()
            left = asyncio.create_task(asked.encode_texts(["hang"]))
            await asyncio.sleep(DEADLINE_SECONDS / 3)
            left.cancel()
            await asyncio.sleep(0)
            await asked.encode_texts(["a cat"])

        asyncio.run(ask())
