"""Contrastive losses over the global batch: open_clip's, and one that knows equal captions."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional

from mode_ray.config.train import LossConfig


class EqualCaptionClipLoss(ClipLoss):  # type: ignore[misc]
    """CLIP's loss where pairs with the same caption are not one another's negatives.

    The logit of an image and a caption that equals its own, but stands with another pair of the global batch, is left
    out of both softmaxes; the pair's own logit stays.
    """

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        caption_ids: torch.Tensor,
        logit_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of this rank's rows.

        Args:
            image_features: Unit norm, [b, d].
            text_features: Unit norm, [b, d].
            logit_scale: Factor of the cosines.
            caption_ids: int64 [b], equal for equal captions.
            logit_bias: Added to the logits, where the model has one.
        """
        per_image, per_text = self.get_logits(image_features, text_features, logit_scale, logit_bias)
        own_b = self.get_ground_truth(image_features.device, len(image_features))
        left_out = caption_ids[:, None] == self._all_ranks(caption_ids)[None, :]
        left_out.scatter_(1, own_b[:, None], value=False)
        losses = [
            functional.cross_entropy(logits.masked_fill(left_out, -torch.inf), own_b)
            for logits in (per_image, per_text)
        ]
        return (losses[0] + losses[1]) / 2

    def _all_ranks(self, ids: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return ids
        gathered = [torch.empty_like(ids) for _ in range(self.world_size)]
        torch.distributed.all_gather(gathered, ids)
        return torch.cat(gathered)


class ContrastiveLoss:
    """The loss that a config asks for.

    Its gradients, averaged over the ranks, are those of one process with the whole batch.

    Args:
        config: Which loss.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(self, config: LossConfig, rank: int, world_size: int) -> None:
        self._needs_ids = config.mask_equal_captions
        self._loss: Any
        if config.kind == "siglip":
            self._loss = SigLipLoss(rank=rank, world_size=world_size)
        else:
            kind = EqualCaptionClipLoss if config.mask_equal_captions else ClipLoss
            self._loss = kind(
                local_loss=True, gather_with_grad=True, cache_labels=True, rank=rank, world_size=world_size
            )

    def __call__(self, features: Mapping[str, torch.Tensor], caption_ids: torch.Tensor) -> torch.Tensor:
        """The loss of this rank's part of the batch.

        Args:
            features: `image_features` and `text_features`, float32 [b, d] of unit norm; `logit_scale`; `logit_bias`
                where the model has one.
            caption_ids: int64 [b].
        """
        extra = {"caption_ids": caption_ids} if self._needs_ids else {}
        loss: torch.Tensor = self._loss(**features, **extra)
        return loss
