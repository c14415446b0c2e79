"""A trained CLIP model in use: images and texts to unit-norm embeddings."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mode_ray.embed.encoder import unit_rows
from mode_ray.models.clip import load_clip
from mode_ray.models.fast_tokens import fast_tokenizer
from mode_ray.models.preprocess import MAX_RESIZED_PIXELS, ImageGeometry, require_bounded
from mode_ray.models.short_texts import encode_short_texts
from mode_ray.storage import Location
from mode_ray.util.devices import pick_device

Precision = Literal["float32", "bfloat16", "float16"]
_TEXTS_AT_ONCE = 256
CONTEXT_LENGTH = 77  # open_clip's, where a config states none
# open_clip's defaults, for a config that states none.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Expert:
    """One model of an expert folder. The methods block; use an expert from one thread at a time.

    Args:
        folder: Holds open_clip's config and weights.
        device: `auto`, `cpu`, `cuda`, ….
        precision: Arithmetic of the forward pass.
        threads: CPU threads, set for the calling thread; None leaves torch's setting.

    Attributes:
        folder: As given.
        geometry: How images are resized for this model.
        tokenizer: Texts to int64 [b, context].
        context_length: Tokens of a text at most.
        logit_scale: exp of the learned temperature.
        dimension: d, the length of an embedding.

    Raises:
        DataError: The folder is missing, incomplete or damaged.
    """

    def __init__(
        self, folder: Location, device: str = "auto", precision: Precision = "float32", threads: int | None = None
    ) -> None:
        clip = load_clip(folder)
        self.folder = folder
        self._threads = threads
        self._dtype: torch.dtype = getattr(torch, precision)
        self._module = cast(Any, clip.module.eval().to(pick_device(device)))
        # The same tokens, without open_clip's cache of words, which grows without bound in a service.
        self.tokenizer = fast_tokenizer(clip.tokenizer)
        self._transform = clip.eval_transform
        self.context_length = int(clip.config["model_cfg"]["text_cfg"].get("context_length", CONTEXT_LENGTH))
        self.geometry = ImageGeometry.of_model(clip.config)
        preprocess = clip.config.get("preprocess_cfg", {})
        self._mean_311 = self._channels(preprocess.get("mean", _MEAN))
        self._std_311 = self._channels(preprocess.get("std", _STD))
        self.logit_scale = float(self._module.logit_scale.detach().exp())
        self.dimension = int(self.encode_texts([""]).shape[1])

    @property
    def module(self) -> torch.nn.Module:
        """The open_clip model. The expert works on the device that it is moved to."""
        module: torch.nn.Module = self._module
        return module

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._module.logit_scale.device
        return device

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model takes."""
        return self.geometry.size

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Resize and normalise one image, float32 [3, h, w]; experts of one run share this step.

        Raises:
            DataError: The image is too elongated.
        """
        require_bounded(image, self.geometry, MAX_RESIZED_PIXELS, "image")
        return self._transform(image)

    @torch.inference_mode()
    def encode_images(self, images_b3hw: torch.Tensor) -> npt.NDArray[np.float32]:
        """Unit-norm embeddings of prepared images, float32 [b, d]."""
        self._take_threads()
        with self._arithmetic():
            return self._rows(self._module.encode_image(images_b3hw.to(self.device), normalize=True))

    @torch.inference_mode()
    def encode_pixels(self, images_bhw3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit-norm embeddings of images of the model's size, float32 [b, d].

        The pixels are normalised in the order of torchvision's ToTensor and Normalize, so that the embeddings equal
        those of `encode_images`.
        """
        self._take_threads()
        # Arrays from shared memory are read-only; torch would warn about that.
        pixels_b3hw = torch.from_numpy(np.require(images_bhw3, requirements="W")).to(self.device).permute(0, 3, 1, 2)
        mean_311, std_311 = self._mean_311.to(self.device), self._std_311.to(self.device)
        prepared_b3hw = pixels_b3hw.contiguous().float().div_(255).sub_(mean_311).div_(std_311)
        return self.encode_images(prepared_b3hw)

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit-norm embeddings of texts, float32 [l, d]."""
        starts = range(0, len(texts), _TEXTS_AT_ONCE)
        return np.concatenate(
            [self.encode_tokens(self.tokenizer(list(texts[start : start + _TEXTS_AT_ONCE]))) for start in starts]
        )

    @torch.inference_mode()
    def encode_tokens(self, tokens_bt: torch.Tensor) -> npt.NDArray[np.float32]:
        """Unit-norm embeddings of tokenized texts, float32 [b, d]."""
        self._take_threads()
        with self._arithmetic():
            return self._rows(encode_short_texts(self._module, tokens_bt.to(self.device)))

    def _channels(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(3, 1, 1)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _rows(self, features_bd: torch.Tensor) -> npt.NDArray[np.float32]:
        """Features as numpy; rows computed in 16 bits have a length of 1 to few digits, and are scaled again."""
        rows_bd: npt.NDArray[np.float32] = features_bd.float().cpu().numpy()
        return rows_bd if self._dtype == torch.float32 else unit_rows(rows_bd)

    def _take_threads(self) -> None:
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
