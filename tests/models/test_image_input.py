"""Images to the pixels that a model takes: open_clip's resizing, bounded sizes, one decoding for all uses."""

import io

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from serving import picture

from mode_ray.config.images import ImagesConfig
from mode_ray.errors import DataError
from mode_ray.models.preprocess import ImageGeometry, ImageInput
from mode_ray.pairs.images import FORMATS, WEB_FORMATS, Pixels, decode_image


def scaled(pixels_hw3: Pixels) -> torch.Tensor:
    """Pixels as open_clip scales them, float32 [3, h, w]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PreprocessCfg.mean, PreprocessCfg.std))
    return (torch.from_numpy(pixels_hw3.copy()).permute(2, 0, 1).float() / 255 - mean) / std


class TestPrepare:
    @pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
    @pytest.mark.parametrize("size", [(40, 30), (30, 40), (7, 90), (224, 224)])
    def test_it_is_open_clips_own_evaluation_before_scaling(self, resize_mode: str, size: tuple[int, int]) -> None:
        data = picture(3, size=size)
        geometry = ImageGeometry(size=(32, 32), resize_mode=resize_mode)
        ours_hw3 = ImageInput(geometry, 10**6).prepare(data, "x")
        theirs = image_transform_v2(PreprocessCfg(size=32, resize_mode=resize_mode), is_train=False)
        whole_3hw = theirs(decode_image(data, 10**6, "x"))
        assert (ours_hw3.dtype, ours_hw3.shape) == (np.dtype(np.uint8), (32, 32, 3))
        torch.testing.assert_close(scaled(ours_hw3), whole_3hw, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L"])
    def test_decoding_like_open_clip_gives_its_pixels_for_every_mode(self, mode: str) -> None:
        image = Image.open(io.BytesIO(picture(3))).convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        exif = Image.Exif()
        exif[0x0112] = 6
        stream = io.BytesIO()
        image.convert(mode).save(stream, "PNG", exif=exif)
        source = ImageInput(ImageGeometry(size=(32, 32)), 10**6, ImagesConfig(decoding="open_clip"))
        whole_3hw = image_transform_v2(PreprocessCfg(size=32), is_train=False)(Image.open(stream))
        torch.testing.assert_close(scaled(source.prepare(stream.getvalue(), "x")), whole_3hw, rtol=0, atol=1e-6)

    def test_every_known_format_is_taken_by_its_content(self) -> None:
        images = [picture(seed, kind) for seed, kind in enumerate(FORMATS)]
        source = ImageInput(ImageGeometry(size=(16, 16)), 10**6)
        assert [source.prepare(data, "x").shape for data in images] == [(16, 16, 3)] * len(FORMATS)

    def test_a_service_takes_the_formats_of_the_web(self) -> None:
        source = ImageInput(ImageGeometry(size=(16, 16)), 10**6, formats=WEB_FORMATS)
        with pytest.raises(DataError, match="image 0: not an image of a known format"):
            source.prepare(picture(1, "TIFF"), "image 0")


class TestElongated:
    @pytest.mark.parametrize("decoding", ["standard", "open_clip"])
    def test_a_line_of_pixels_is_refused_before_it_is_resized(self, decoding: str) -> None:
        images = ImagesConfig.model_validate({"decoding": decoding})
        source = ImageInput(ImageGeometry(size=(224, 224)), 64_000_000, images)
        for width in (5_000, 60_000):
            with pytest.raises(DataError, match=f"image 0: image of {width} x 1 pixels is too elongated"):
                source.prepare(picture(1, "PNG", (width, 1)), "image 0")

    def test_one_that_would_have_no_pixels_is_refused(self) -> None:
        source = ImageInput(ImageGeometry(size=(224, 224), resize_mode="longest"), 64_000_000)
        assert source.prepare(picture(1, "PNG", (440, 1)), "x").shape == (224, 224, 3)
        with pytest.raises(DataError, match="resized to 224 pixels on its longer side it would have no pixels"):
            source.prepare(picture(1, "PNG", (5_000, 1)), "x")

    def test_squashed_ones_are_always_of_the_models_size(self) -> None:
        source = ImageInput(ImageGeometry(size=(32, 32), resize_mode="squash"), 64_000_000)
        assert source.prepare(picture(1, "PNG", (60_000, 1)), "x").shape == (32, 32, 3)
