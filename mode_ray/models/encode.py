"""A trained CLIP model in use: unit-norm image and text embeddings, and zero-shot classifiers."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from mode_ray.embed.encoder import pick_device
from mode_ray.models.clip import load_clip
from mode_ray.storage import Location
from mode_ray.train.step.fast_tokens import fast_tokenizer

_TEXTS_AT_ONCE = 256


class Expert:
    """One model of an expert folder.

    Args:
        folder: Holds open_clip's config and weights.
        device: `auto`, `cpu`, `cuda`, ….

    Attributes:
        logit_scale: exp of the learned temperature.

    Raises:
        DataError: The folder is missing, incomplete or damaged.
    """

    def __init__(self, folder: Location, device: str = "auto") -> None:
        clip = load_clip(folder)
        self._device = pick_device(device)
        self._module = cast(Any, clip.module.eval().to(self._device))
        # The same tokens; open_clip keeps every word that it ever met, and a service meets words without end.
        self._tokenizer = fast_tokenizer(clip.tokenizer)
        self._transform = clip.eval_transform
        self.logit_scale = float(self._module.logit_scale.detach().exp())

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Resize and normalise one image, float32 [3, h, w]; experts of one run share this step."""
        return self._transform(image)

    @torch.inference_mode()
    def encode_images(self, images_b3hw: torch.Tensor) -> np.ndarray:
        """Unit-norm embeddings of prepared images, float32 [b, d]."""
        features = self._module.encode_image(images_b3hw.to(self._device), normalize=True)
        embeddings: np.ndarray = features.float().cpu().numpy()
        return embeddings

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-norm embeddings of texts, float32 [l, d]."""
        parts = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens = self._tokenizer(list(texts[start : start + _TEXTS_AT_ONCE])).to(self._device)
            parts.append(self._module.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(parts)
