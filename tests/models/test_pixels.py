"""Pixels are normalised on the training device, to the same floats as in the loader of version 0.1.0."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg, image_transform_v2

from mode_ray.models.clip import ClipModel
from mode_ray.models.pixels import PixelNormaliser, pixel_layout

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def module(new_clip: Callable[[], ClipModel]) -> torch.nn.Module:
    return new_clip().module


def test_it_is_open_clips(module: torch.nn.Module) -> None:
    normalize = image_transform_v2(PreprocessCfg(size=16), is_train=True).transforms[-1]
    found = PixelNormaliser(module, CPU, torch.float32)(PIXELS)
    assert torch.allclose(found, normalize(PIXELS.float() / 255), atol=2e-6)


def test_it_equals_the_former_loaders_floats_bit_for_bit(module: torch.nn.Module) -> None:
    visual: Any = module.visual
    config = visual.preprocess_cfg
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    former = PIXELS.float()
    torch.addcmul(-mean / std, former, 1 / (255 * std), out=former)
    assert torch.equal(PixelNormaliser(module, CPU, torch.float32)(PIXELS), former)
    assert torch.equal(PixelNormaliser(module, CPU, torch.bfloat16)(PIXELS), former.bfloat16())


def test_floats_are_normalised_already(module: torch.nn.Module) -> None:
    floats = torch.randn(2, 3, 16, 16)
    assert PixelNormaliser(module, CPU, torch.bfloat16)(floats) is floats


def test_networks_of_convolutions_have_their_channels_last(module: torch.nn.Module) -> None:
    network = ModifiedResNet(layers=(1, 1, 1, 1), output_dim=16, heads=4, image_size=32, width=8).eval()
    assert pixel_layout(network) == torch.channels_last
    images = PixelNormaliser(module, CPU, torch.float32)(PIXELS.repeat(1, 1, 2, 2))
    before = network(images)
    after = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert torch.allclose(before, after, atol=1e-5)


def test_transformers_keep_their_layout(module: torch.nn.Module) -> None:
    assert pixel_layout(module) == torch.contiguous_format
