"""The losses against numbers worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional

from mode_ray.config.train import LossConfig
from mode_ray.train.step.losses import ContrastiveLoss
from mode_ray.train.step.rank import ONLY_RANK

SCALE = 2.0


def features(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    """Three pairs in the plane: images along x, along x and along y; captions likewise."""
    axes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    return {"image_features": axes, "text_features": axes.clone(), "logit_scale": torch.tensor(SCALE), **extra}


def loss(caption_ids: list[int], **config: object) -> float:
    made = ContrastiveLoss(LossConfig.model_validate(config), ONLY_RANK)
    return float(made(features(), torch.tensor(caption_ids)))


class TestClip:
    def test_every_other_pair_is_a_negative(self) -> None:
        # Rows of logits: (2, 2, 0) twice and (0, 0, 2), the same by caption.
        twins = -2 + math.log(2 * math.exp(2) + 1)
        single = -2 + math.log(math.exp(2) + 2)
        assert loss([7, 7, 9]) == pytest.approx((2 * twins + single) / 3)


class TestEqualCaptionsMasked:
    def test_pairs_with_the_same_caption_are_not_negatives(self) -> None:
        # Of the twins' rows only (2, 0) is left; the third row has no equal and stays.
        twins = -2 + math.log(math.exp(2) + 1)
        single = -2 + math.log(math.exp(2) + 2)
        assert loss([7, 7, 9], mask_equal_captions=True) == pytest.approx((2 * twins + single) / 3)

    def test_without_equal_captions_it_is_clips_loss(self) -> None:
        assert loss([1, 2, 3], mask_equal_captions=True) == pytest.approx(loss([1, 2, 3]))

    def test_captions_that_are_all_equal_cost_nothing(self) -> None:
        assert loss([5, 5, 5], mask_equal_captions=True) == pytest.approx(0.0)

    def test_gradients_are_finite_where_logits_are_left_out(self) -> None:
        leaves = features()
        image = leaves["image_features"].requires_grad_()
        made = ContrastiveLoss(LossConfig(mask_equal_captions=True), ONLY_RANK)
        made(leaves, torch.tensor([7, 7, 9])).backward()  # type: ignore[no-untyped-call]
        assert image.grad is not None
        assert bool(torch.isfinite(image.grad).all())


class TestSiglip:
    def test_every_pair_of_image_and_caption_is_a_decision_of_its_own(self) -> None:
        made = ContrastiveLoss(LossConfig(kind="siglip"), ONLY_RANK)
        value = float(made(features(logit_bias=torch.tensor(-1.0)), torch.tensor([1, 2, 3])))
        logits = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
        signs = 2 * torch.eye(3) - 1
        assert value == pytest.approx(float(-functional.logsigmoid(signs * logits).sum() / 3))
