"""Crops are those of open_clip's training transform, drawn by position."""

import numpy as np
import pytest
import torch
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from mode_ray.models.crops import TrainTransform, crop_box

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).resize((300, 200))


def open_clips(size: int = 32, **augmentation: object) -> Compose:
    return image_transform_v2(PreprocessCfg(size=size), is_train=True, aug_cfg=AugmentationCfg(**augmentation))


def boxes(transform: TrainTransform, height: int, width: int, count: int = 4000, seed: int = 0) -> np.ndarray:
    return np.array([crop_box(height, width, transform.ratio, row) for row in transform.draw(seed, np.arange(count))])


class TestParameters:
    def test_they_are_read_from_open_clips_transform(self) -> None:
        transform = TrainTransform.of(open_clips(224, scale=(0.5, 0.8)))
        assert (transform.size, transform.scale, transform.mode) == ((224, 224), (0.5, 0.8), "bicubic")
        assert transform.ratio == pytest.approx((3 / 4, 4 / 3))

    @pytest.mark.parametrize(
        "transform", [open_clips(gray_scale_prob=0.2), lambda image: image, Compose([])], ids=["grey", "any", "none"]
    )
    def test_a_transform_that_does_more_is_refused(self, transform: Compose) -> None:
        with pytest.raises(TypeError, match="not the training transform of open_clip"):
            TrainTransform.of(transform)


class TestBoxes:
    @pytest.mark.parametrize(("height", "width"), [(32, 32), (200, 300), (300, 200), (50, 400), (1, 1), (1, 7)])
    @pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0)])
    def test_they_are_distributed_as_torchvisions(self, height: int, width: int, scale: tuple[float, float]) -> None:
        transform = TrainTransform.of(open_clips(scale=scale))
        ours = boxes(transform, height, width)
        assert (ours[:, :2] >= 0).all()
        assert (ours[:, 2:] >= 1).all()
        assert (ours[:, 0] + ours[:, 2] <= height).all()
        assert (ours[:, 1] + ours[:, 3] <= width).all()
        torch.manual_seed(0)
        picture = torch.empty(3, height, width)
        theirs = np.array(
            [RandomResizedCrop.get_params(picture, list(scale), list(transform.ratio)) for _ in range(4000)]
        )
        deviation = np.maximum(1e-9, np.hypot(ours.std(axis=0), theirs.std(axis=0)) / np.sqrt(4000))
        assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / deviation < 4.5).all()
        assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), rel=0.1, abs=1e-9)

    def test_a_crop_depends_on_seed_and_position_alone(self) -> None:
        transform = TrainTransform.of(open_clips())
        whole = transform.draw(3, np.arange(50))
        assert transform.draw(3, [17, 4]) == [whole[17], whole[4]]
        assert transform.draw(4, [17]) != [whole[17]]
        assert len({tuple(row) for row in whole}) == 50
        state = torch.get_rng_state()
        transform.draw(2**63, [10**12])
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [32, 224])
def test_pixels_are_those_of_pil_but_for_rounding(size: int) -> None:
    transform = TrainTransform.of(open_clips(size))
    pixels = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)
    for drawn in transform.draw(0, np.arange(10)):
        box = crop_box(200, 300, transform.ratio, drawn)
        expected = np.asarray(resized_crop(PICTURE, *box, [size, size], InterpolationMode.BICUBIC)).astype(int)
        found = transform.crop(pixels, drawn).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - expected).max() <= 1
        assert np.abs(found - expected).mean() < 0.02
