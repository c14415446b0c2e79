"""One expert's model in this process: resized uint8 images and texts to unit-norm embeddings."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.embed.encoder import pick_device, unit_rows
from mode_ray.models.encode import Expert
from mode_ray.models.preprocess import ImageGeometry, read_model_config
from mode_ray.storage import Location

Precision = Literal["float32", "bfloat16", "float16"]
# open_clip's own, for a config that states none.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ExpertModel:
    """A model of an expert folder; its methods block, and are for one thread at a time.

    Args:
        folder: Holds open_clip's config and weights.
        device: `auto`, `cpu`, `cuda`, ….
        precision: Arithmetic of the forward pass.
        threads: CPU threads of it, set for the thread that calls.

    Attributes:
        folder: As given.
        logit_scale: exp of the learned temperature.
        image_size: Height and width of the images that it takes.

    Raises:
        DataError: The folder is missing, incomplete or damaged.
    """

    def __init__(
        self, folder: Location, device: str = "auto", precision: Precision = "float32", threads: int = 1
    ) -> None:
        config = read_model_config(folder)
        self.folder = folder
        self._expert = Expert(folder, device)
        self._device = pick_device(device)
        self._dtype: torch.dtype = getattr(torch, precision)
        self._threads = threads
        preprocess = config.get("preprocess_cfg", {})
        self._mean_311 = self._channels(preprocess.get("mean", _MEAN))
        self._std_311 = self._channels(preprocess.get("std", _STD))
        self.image_size = ImageGeometry.of_model(config).size
        self.logit_scale = self._expert.logit_scale
        self.dimension = int(self.encode_texts([""]).shape[1])

    def encode_images(self, images_bhw3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit-norm embeddings of resized images, float32 [b, d]."""
        self._take_threads()
        # What came through shared memory may not be written to, which torch would warn of.
        pixels_b3hw = (
            torch.from_numpy(np.require(images_bhw3, requirements="W"))
            .to(self._device)
            .permute(0, 3, 1, 2)
            .contiguous()
        )
        # The order of torchvision's ToTensor and Normalize, so that the numbers are the same.
        prepared_b3hw = pixels_b3hw.float().div_(255).sub_(self._mean_311).div_(self._std_311)
        with self._arithmetic():
            return self._unit(self._expert.encode_images(prepared_b3hw))

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit-norm embeddings of texts, float32 [l, d]."""
        self._take_threads()
        with self._arithmetic():
            return self._unit(self._expert.encode_texts(texts))

    def _channels(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device).view(3, 1, 1)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _unit(self, rows_bd: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """In short floats a norm of 1 is one to three digits: made so again."""
        return rows_bd if self._dtype == torch.float32 else unit_rows(rows_bd)

    def _take_threads(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
