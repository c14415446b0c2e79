"""The interface of an open_clip model to the training loop: images and captions in, unit features and scale out.

With locked trunks whose features were computed before, the input is these features, and only the heads run.
"""

from typing import Any

import torch
from torch.nn import functional

from mode_ray.models.trunks import DividedModel
from mode_ray.train.step.text_groups import CausalText, GroupedTexts, TextGrouping

IMAGE = "image_features"
TEXT = "text_features"
LOGIT_SCALE = "logit_scale"
LOGIT_BIAS = "logit_bias"
# Attribute names in torch, timm and open_clip for the rate of dropped units, patches and paths.
_DROP_RATES = ("p", "prob", "drop_prob", "dropout")


class FeatureModel(torch.nn.Module):
    """Wraps a model without changing it. Its parameters keep their names below `clip`.

    Without `causal_text`, the model's own `encode_text` encodes captions. With `divided`, the inputs are features of
    its trunks, and its heads, which share their weights with the model, encode them.
    """

    def __init__(
        self, clip: torch.nn.Module, causal_text: CausalText | None, divided: DividedModel | None = None
    ) -> None:
        super().__init__()
        self.clip: Any = clip
        self._causal_text = None if divided is not None else causal_text
        self._divided = divided

    @property
    def text_grouping(self) -> TextGrouping | None:
        """How captions are grouped for `forward`; None if it takes tokens."""
        return None if self._causal_text is None else self._causal_text.grouping

    def forward(self, images: torch.Tensor, texts: torch.Tensor | GroupedTexts) -> dict[str, torch.Tensor]:
        """Features of pairs.

        Features are normalised in float32 in any precision: at a logit scale of 100, rounding to bfloat16 would
        change logits by up to 0.4.

        Args:
            images: Normalised, [b, 3, h, w]; or features of the image trunk, [b, k].
            texts: int64 [b, context], or in the groups of `text_grouping`; or features of the text trunk, [b, k].

        Returns:
            `image_features` and `text_features` float32 [b, d]; `logit_scale`, a factor; `logit_bias` if the model has
            one.
        """
        if self._divided is not None and isinstance(texts, torch.Tensor):
            image, text = self._divided.image.head(images.float()), self._divided.text.head(texts.float())
            return self._features(image, text)
        image = self.clip.encode_image(images)
        if self._causal_text is not None and isinstance(texts, GroupedTexts):
            text = self._causal_text.encode(texts)
        else:
            text = self.clip.encode_text(texts)
        return self._features(image, text)

    def _features(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        features = {
            IMAGE: functional.normalize(image.float(), dim=-1),
            TEXT: functional.normalize(text.float(), dim=-1),
            LOGIT_SCALE: self.clip.logit_scale.exp(),
        }
        bias = self.logit_bias
        return features if bias is None else {**features, LOGIT_BIAS: bias}

    @property
    def logit_bias(self) -> torch.nn.Parameter | None:
        """The learned bias of SigLIP's logits, or None."""
        return getattr(self.clip, "logit_bias", None)

    @property
    def logit_parameters(self) -> list[torch.nn.Parameter]:
        """Logit scale and bias: single numbers, which are never sharded."""
        scale: torch.nn.Parameter = self.clip.logit_scale
        return [scale] if self.logit_bias is None else [scale, self.logit_bias]

    @property
    def draws_random_numbers(self) -> bool:
        """Whether the forward pass drops anything at random."""
        rates = (getattr(module, name, None) for module in self.modules() if module.training for name in _DROP_RATES)
        return any(isinstance(rate, float) and rate > 0 for rate in rates)
