"""Normalises pixels on the training device: batches travel there as uint8, a quarter of the bytes.

`pixel_layout` is the order of the axes in memory that suits a tower.
"""

from typing import Any

import torch


def pixel_layout(tower: torch.nn.Module) -> torch.memory_format:
    """The memory layout in which an image tower is fastest; give it to the tower's weights and to its pixels.

    Networks of convolutions are 1.5 to 2 times as fast on CPUs with channels last. A transformer has one convolution,
    which cuts out the patches.
    """
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in tower.modules())
    return torch.channels_last if convolutions > 1 else torch.contiguous_format


class PixelNormaliser:
    """Subtracts a model's mean and divides by its standard deviation, per channel.

    Args:
        module: An open_clip model; its image tower has both in `preprocess_cfg`.
        device: Device of the pixels.
        precision: Type of the result. The arithmetic is in float32.

    Attributes:
        device: As given.
        precision: As given.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, precision: torch.dtype) -> None:
        self.device = device
        self.precision = precision
        visual: Any = module.visual
        mean_311, std_311 = (torch.tensor(visual.preprocess_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
        self._offset_311 = (-mean_311 / std_311).to(device)
        self._scale_311 = (1 / (255 * std_311)).to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 [b, 3, h, w]; floats are returned as they are, because they are normalised already."""
        if images.is_floating_point():
            return images
        return torch.addcmul(self._offset_311, images, self._scale_311).to(self.precision)
