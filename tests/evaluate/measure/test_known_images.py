"""An image is embedded once for all tasks of a Ray task, within a bound in bytes."""

import numpy as np
import pytest

from mode_ray.evaluate.measure.known_images import KnownImages
from mode_ray.models.encode import Embeddings, Expert
from mode_ray.models.together import encode_pixels, load_experts
from mode_ray.pairs.images import Pixels
from mode_ray.storage import Location


@pytest.fixture
def pictures(models: dict[str, Location]) -> list[Pixels]:
    size = next(iter(load_experts(models).values())).image_size
    return list(np.random.default_rng(0).integers(0, 256, (5, *size, 3)).astype(np.uint8))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that went through the models, call by call."""

    def counting(experts: list[Expert], images_bhw3: Pixels) -> list[Embeddings]:
        sizes.append(len(images_bhw3))
        return encode_pixels(experts, images_bhw3)

    sizes: list[int] = []
    monkeypatch.setattr("mode_ray.evaluate.measure.known_images.encode_pixels", counting)
    return sizes


def test_an_image_goes_through_the_models_once(
    models: dict[str, Location], pictures: list[Pixels], embedded: list[int]
) -> None:
    experts = load_experts(models)
    images = KnownImages(experts)
    first = images.encode([*pictures[:3], pictures[0]])
    second = images.encode(pictures)
    assert embedded == [3, 2]
    for name, expert in experts.items():
        expected = expert.encode_pixels(np.stack(pictures))
        np.testing.assert_allclose(second[name], expected, atol=1e-6)
        np.testing.assert_array_equal(first[name], second[name][[0, 1, 2, 0]])


def test_what_does_not_fit_is_embedded_again(
    models: dict[str, Location], pictures: list[Pixels], embedded: list[int]
) -> None:
    experts = load_experts(models)
    bytes_of_image = sum(4 * expert.dimension for expert in experts.values())
    images = KnownImages(experts, most_bytes=2 * bytes_of_image)
    for _ in range(3):
        assert len(images.encode(pictures)["dense"]) == 5
    assert embedded == [5, 3, 3]
