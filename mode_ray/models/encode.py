"""A trained CLIP model in use: images and texts to unit-norm embeddings."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from mode_ray.embed.encoder import unit_rows
from mode_ray.models.clip import load_clip
from mode_ray.models.fast_tokens import fast_tokenizer
from mode_ray.models.pixels import pixel_layout
from mode_ray.models.preprocess import MAX_RESIZED_PIXELS, ImageGeometry, require_bounded
from mode_ray.models.shared_trunks import Tower, Trunk, Trunks
from mode_ray.storage import Location
from mode_ray.util.devices import pick_device
from mode_ray.util.memory import return_freed_memory

Precision = Literal["float32", "bfloat16", "float16"]
Embeddings = npt.NDArray[np.float32]
TEXTS_AT_ONCE = 256
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
        trunks: The trunks of other loaded models: equal ones are shared with them.

    Attributes:
        folder: As given.
        image_tower: The image tower; one with other `features`, such as those of a compiled trunk, may replace it.
        precision: As given.
        geometry: How images are resized for this model.
        tokenizer: Texts to int64 [b, context].
        context_length: Tokens of a text at most.
        threads: As given; it may be changed.
        logit_scale: exp of the learned temperature.
        dimension: d, the length of an embedding.

    Raises:
        DataError: The folder is missing, incomplete or damaged.
    """

    def __init__(
        self,
        folder: Location,
        device: str = "auto",
        precision: Precision = "float32",
        threads: int | None = None,
        trunks: Trunks | None = None,
    ) -> None:
        clip = load_clip(folder)
        self.folder = folder
        self.threads = threads
        self.precision: Precision = precision
        self._dtype: torch.dtype = getattr(torch, precision)
        self.image_tower, self._text = (trunks or Trunks()).divide(clip)
        self._layout = pixel_layout(clip.module)
        self._module = cast(Any, clip.module.eval().to(pick_device(device)).to(memory_format=self._layout))
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
        return_freed_memory()  # that of the trunks that are shared, and of the file

    @property
    def module(self) -> torch.nn.Module:
        """The open_clip model. The expert works on the device that it is moved to."""
        module: torch.nn.Module = self._module
        return module

    @property
    def image_trunk(self) -> Trunk:
        """The trunk of the image tower; models with the same object have the same `pixel_features`."""
        return self.image_tower.trunk

    @property
    def text_trunk(self) -> Trunk:
        """The trunk of the text tower; models with the same object have the same `token_features`."""
        return self._text.trunk

    @property
    def device(self) -> torch.device:
        """Where the model is. It follows its trunks, which another model may have moved."""
        own: torch.device = self._module.logit_scale.device
        moved = next((trunk.device for trunk in (self.image_trunk, self.text_trunk) if trunk.device != own), own)
        if moved != own:
            self._module.to(moved)
        return moved

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

    def encode_images(self, images_b3hw: torch.Tensor) -> Embeddings:
        """Unit-norm embeddings of prepared images, float32 [b, d]."""
        return self.embed_images(self.image_features(images_b3hw))

    def encode_pixels(self, images_bhw3: npt.NDArray[np.uint8]) -> Embeddings:
        """Unit-norm embeddings of images of the model's size, float32 [b, d]."""
        return self.embed_images(self.pixel_features(images_bhw3))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Unit-norm embeddings of texts, float32 [l, d]."""
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        return np.concatenate(
            [self.encode_tokens(self.tokenizer(list(texts[start : start + TEXTS_AT_ONCE]))) for start in starts]
        )

    def encode_tokens(self, tokens_bt: torch.Tensor) -> Embeddings:
        """Unit-norm embeddings of tokenized texts, float32 [b, d]."""
        return self.embed_texts(self.token_features(tokens_bt))

    @torch.inference_mode()
    def image_features(self, images_b3hw: torch.Tensor) -> torch.Tensor:
        """Features of prepared images before the head, [b, k]."""
        self._take_threads()
        with self._arithmetic():
            return self.image_tower.features(images_b3hw.to(self.device, memory_format=self._layout))

    @torch.inference_mode()
    def pixel_features(self, images_bhw3: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Features of images of the model's size, before the head, [b, k].

        The pixels are normalised in the order of torchvision's ToTensor and Normalize, so that the features equal
        those of `image_features`.
        """
        self._take_threads()
        # Arrays from shared memory are read-only; torch would warn about that.
        pixels_b3hw = torch.from_numpy(np.require(images_bhw3, requirements="W")).to(self.device).permute(0, 3, 1, 2)
        mean_311, std_311 = self._mean_311.to(self.device), self._std_311.to(self.device)
        prepared_b3hw = pixels_b3hw.contiguous().float().div_(255).sub_(mean_311).div_(std_311)
        return self.image_features(prepared_b3hw)

    @torch.inference_mode()
    def token_features(self, tokens_bt: torch.Tensor) -> torch.Tensor:
        """Features of tokenized texts before the head, [b, k]."""
        self._take_threads()
        with self._arithmetic():
            return self._text.features(tokens_bt.to(self.device))

    def embed_images(self, features_bk: torch.Tensor) -> Embeddings:
        """Unit-norm embeddings, float32 [b, d], of the features of any model with this image trunk."""
        return self._embedded(self.image_tower, features_bk)

    def embed_texts(self, features_bk: torch.Tensor) -> Embeddings:
        """Unit-norm embeddings, float32 [b, d], of the features of any model with this text trunk."""
        return self._embedded(self._text, features_bk)

    @torch.inference_mode()
    def _embedded(self, tower: Tower, features_bk: torch.Tensor) -> Embeddings:
        self._take_threads()
        with self._arithmetic():
            return self._rows(functional.normalize(tower.head(features_bk.to(self.device)), dim=-1))

    def _channels(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(3, 1, 1)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _rows(self, features_bd: torch.Tensor) -> Embeddings:
        """Features as numpy; rows computed in 16 bits have a length of 1 to few digits, and are scaled again."""
        rows_bd: Embeddings = features_bd.float().cpu().numpy()
        return rows_bd if self._dtype == torch.float32 else unit_rows(rows_bd)

    def _take_threads(self) -> None:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
