import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from serving import picture

from mode_ray.errors import DataError
from mode_ray.models.preprocess import ImageGeometry, ImageInput
from mode_ray.pairs.images import decode_image


class TestPrepare:
    @pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
    @pytest.mark.parametrize("size", [(40, 30), (30, 40), (7, 90), (224, 224)])
    def test_it_is_open_clips_own_evaluation_before_scaling(self, resize_mode: str, size: tuple[int, int]) -> None:
        data = picture(3, size=size)
        geometry = ImageGeometry(size=(32, 32), resize_mode=resize_mode)
        ours_hw3 = ImageInput(geometry, 10**6).prepare(data, "x")
        theirs = image_transform_v2(PreprocessCfg(size=32, resize_mode=resize_mode), is_train=False)
        whole_3hw = theirs(decode_image(data, 10**6, "x"))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PreprocessCfg.mean, PreprocessCfg.std))
        scaled = (torch.from_numpy(ours_hw3.copy()).permute(2, 0, 1).float() / 255 - mean) / std
        assert (ours_hw3.dtype, ours_hw3.shape) == (np.dtype(np.uint8), (32, 32, 3))
        torch.testing.assert_close(scaled, whole_3hw, rtol=0, atol=1e-6)

    def test_every_known_format_is_taken_by_its_content(self) -> None:
        images = [picture(seed, kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP"))]
        source = ImageInput(ImageGeometry(size=(16, 16)), 10**6)
        assert [source.prepare(data, "x").shape for data in images] == [(16, 16, 3)] * 5

    def test_a_line_of_pixels_is_refused_before_it_is_resized(self) -> None:
        source = ImageInput(ImageGeometry(size=(224, 224)), 1_000_000)
        with pytest.raises(DataError, match="image 0: image of 60000 x 1 pixels is too elongated"):
            source.prepare(picture(1, "PNG", (60_000, 1)), "image 0")
