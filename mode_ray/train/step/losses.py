"""Contrastive losses over the global batch: open_clip's, and one that masks equal captions."""

from collections.abc import Mapping
from typing import Any, assert_never

import torch
import torch.distributed
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional

from mode_ray.config.train import LossConfig
from mode_ray.train.step.rank import Rank


class EqualCaptionClipLoss(ClipLoss):  # type: ignore[misc]
    """CLIP's loss without negatives between pairs that have the same caption.

    If two pairs of the global batch have equal captions, the logits of one's image with the other's caption are left
    out of both softmaxes. Each pair's own logit stays.
    """

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        caption_ids: torch.Tensor,
        logit_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of this rank's rows: unit-norm features [b, d], and `caption_ids` int64 [b]."""
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
    """The loss of a config.

    Its gradients, averaged over the ranks, equal those of one process with the whole batch.
    """

    def __init__(self, config: LossConfig, rank: Rank) -> None:
        self._needs_ids = config.mask_equal_captions
        self._loss: Any
        ranks = {"rank": rank.number, "world_size": rank.world_size}
        match config.kind:
            case "siglip":
                self._loss = SigLipLoss(**ranks)
            case "clip":
                kind = EqualCaptionClipLoss if config.mask_equal_captions else ClipLoss
                self._loss = kind(local_loss=True, gather_with_grad=True, cache_labels=True, **ranks)
            case _:
                assert_never(config.kind)

    def __call__(self, features: Mapping[str, torch.Tensor], caption_ids: torch.Tensor) -> torch.Tensor:
        """The loss of this rank's part of the batch."""
        extra = {"caption_ids": caption_ids} if self._needs_ids else {}
        loss: torch.Tensor = self._loss(**features, **extra)
        return loss
