"""Experts with equal trunks in one process: the trunk runs once, and every answer is that of the experts alone."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import EXPERTS, picture, service_of

from mode_ray.config.serve import ServeConfig
from mode_ray.models.clip import load_clip, save_clip
from mode_ray.models.encode import Expert
from mode_ray.models.together import load_experts
from mode_ray.serve.service.ensemble_service import EnsembleService
from mode_ray.serve.service.local_expert import LocalExpert
from mode_ray.serve.service.local_groups import LocalGroups
from mode_ray.serve.service.metrics import prometheus_metrics
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.serve.service.task_definition import TaskDefinition
from mode_ray.storage import Location

PETS = TaskDefinition(labels=("cat", "dog", "bus", "apple"), templates=("a photo of a {}.", "one {}"), rule="soft")


@pytest.fixture(scope="module")
def sharing(served: ServedRun, tmp_path_factory: pytest.TempPathFactory) -> ServedRun:
    """The run with experts that have the trunks of the first one."""
    folder = tmp_path_factory.mktemp("heads")
    clip = load_clip(served.experts[0])
    module: Any = clip.module
    experts = {}
    for number in range(EXPERTS):
        with torch.no_grad():
            module.visual.proj.add_(torch.randn_like(module.visual.proj), alpha=0.2)
            module.text_projection.add_(torch.randn_like(module.text_projection), alpha=0.2)
        experts[number] = Location.parse(str(folder / f"{number:02d}"))
        save_clip(experts[number], clip)
    return replace(served, experts=experts)


@pytest.fixture
def service(sharing: ServedRun, tmp_path: Path) -> Iterator[EnsembleService]:
    with service_of(sharing, tmp_path / "tasks") as opened:
        yield opened


def counted(service: EnsembleService) -> tuple[list[int], list[int]]:
    """The images and the texts of every pass of the trunks, from now on."""
    client = next(iter(service._clients.values()))
    assert isinstance(client, LocalExpert)
    images: list[int] = []
    texts: list[int] = []
    for number in service._clients:
        model = client._experts.open_model(number)
        pixel_features, token_features = model.pixel_features, model.token_features

        def seen(images_bhw3: Any, features: Any = pixel_features) -> Any:  # noqa: ANN401 - wraps a method
            images.append(len(images_bhw3))
            return features(images_bhw3)

        def read(tokens_bt: Any, features: Any = token_features) -> Any:  # noqa: ANN401 - as above
            texts.append(len(tokens_bt))
            return features(tokens_bt)

        model.pixel_features = seen  # type: ignore[method-assign]
        model.token_features = read  # type: ignore[method-assign]
    return images, texts


def test_the_trunk_runs_once_for_all_experts(service: EnsembleService) -> None:
    images, texts = counted(service)
    pictures = [picture(seed) for seed in range(5)]
    scores = asyncio.run(service.score(pictures, PETS))
    assert sorted(scores.cosines_il) == list(range(EXPERTS))
    assert sum(images) == len(pictures)
    assert sum(texts) == len(PETS.labels) * len(PETS.templates)


def test_the_answers_are_those_of_the_experts_alone(service: EnsembleService, sharing: ServedRun) -> None:
    pictures = [picture(seed) for seed in range(40)]  # more than a batch

    async def ask() -> Sequence[Any]:
        return await asyncio.gather(service.embed_images(pictures), service.embed_texts(["a cat", "a bus"]))

    images, texts = asyncio.run(ask())
    pixels_bhw3 = np.stack([service._images.prepare(data, "image") for data in pictures])
    for number, folder in sharing.experts.items():
        alone = Expert(folder, "cpu")
        np.testing.assert_allclose(images.by_expert[number], alone.encode_pixels(pixels_bhw3), atol=1e-5)
        np.testing.assert_allclose(texts.by_expert[number], alone.encode_texts(["a cat", "a bus"]), atol=1e-5)


def test_only_the_heads_that_are_asked_for_run(sharing: ServedRun, tmp_path: Path) -> None:
    with service_of(sharing, tmp_path, pruning={"experts": 1}) as service:
        scores = asyncio.run(service.score([picture(1)], PETS))
        assert list(scores.cosines_il) == [int(np.argmax(scores.task.weights_c))]


def test_an_answer_nobody_waits_for_does_not_take_the_others_with_it(sharing: ServedRun) -> None:
    experts = LocalGroups(load_experts(sharing.experts, "cpu"), ServeConfig(), prometheus_metrics(), 1)
    images_bhw3 = np.zeros((2, 16, 16, 3), np.uint8)

    async def ask() -> np.ndarray:
        first, second = (asyncio.create_task(experts.clients[number].encode_images(images_bhw3)) for number in (0, 1))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(ask()).shape == (2, 16)
    experts.close()
