"""Captions in groups by length: the same features and gradients as padding all of them to the context length."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from mode_ray.models.clip import ClipModel
from mode_ray.train.step.features import TEXT, FeatureModel
from mode_ray.train.step.text_groups import CausalText, GroupedTexts, causal_text

CAPTIONS = ["a", "a red square on a white ground", "two cats", "", "a photo of a dog that sleeps " * 4, "b", "tree"]
CONTEXT = 16
MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture
def tokens(new_clip: Callable[[], ClipModel]) -> torch.Tensor:
    return new_clip().tokenizer(CAPTIONS)


def build(folder: Path, custom_text: bool = False, **text: Any) -> torch.nn.Module:  # noqa: ANN401
    torch.manual_seed(0)
    model = {**MODEL, "custom_text": custom_text, "text_cfg": {**MODEL["text_cfg"], **text}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    module: torch.nn.Module = open_clip.create_model(f"local-dir:{folder}", load_weights=False, output_dict=True)
    return module.train()


def grouped(module: torch.nn.Module, groups: int = 3, multiple: int = 1) -> CausalText:
    found = causal_text(module, groups, multiple)
    assert found is not None
    return found


class TestGroups:
    def test_each_group_is_as_long_as_its_longest_caption(
        self, new_clip: Callable[[], ClipModel], tokens: torch.Tensor
    ) -> None:
        texts = grouped(new_clip().module).grouping.group(tokens)
        # With start and end tokens: "" 2, "a" 3, "b" 3 | "tree" 3, "two cats" 4 | 9 and a cut one, 16.
        assert texts.shapes == ((3, 3), (2, 4), (2, 16))
        assert len(texts.tokens) == 3 * 3 + 2 * 4 + 2 * 16

    def test_places_lead_to_the_end_of_every_caption_in_the_batchs_order(
        self, new_clip: Callable[[], ClipModel], tokens: torch.Tensor
    ) -> None:
        texts = grouped(new_clip().module).grouping.group(tokens)
        assert torch.equal(texts.tokens[texts.places_b], tokens.max(dim=-1).values)

    def test_lengths_are_rounded_up_even_beyond_the_context(
        self, new_clip: Callable[[], ClipModel], tokens: torch.Tensor
    ) -> None:
        texts = grouped(new_clip().module, multiple=6).grouping.group(tokens)
        assert [length for _, length in texts.shapes] == [6, 6, 18]

    def test_more_groups_than_captions_are_one_each(
        self, new_clip: Callable[[], ClipModel], tokens: torch.Tensor
    ) -> None:
        texts = grouped(new_clip().module, groups=50).grouping.group(tokens)
        assert [captions for captions, _ in texts.shapes] == [1] * len(CAPTIONS)


class TestFeatures:
    @pytest.mark.parametrize(
        ("custom_text", "text"),
        [
            (False, {}),
            (True, {}),
            (True, {"pool_type": "eos", "eos_id": 49407, "proj_bias": True}),
            (False, {"pool_type": "eos", "eos_id": 49407}),
            (False, {"proj_type": "none"}),
        ],
    )
    @pytest.mark.parametrize("multiple", [1, 8, 5])  # 5: longer than the context
    def test_they_and_their_gradients_are_those_of_the_model_itself(
        self, tmp_path: Path, tokens: torch.Tensor, custom_text: bool, text: dict[str, Any], multiple: int
    ) -> None:
        module: Any = build(tmp_path, custom_text, **text)
        weights = torch.randn((len(CAPTIONS), 16), generator=torch.Generator().manual_seed(1))
        gradients, features = [], []
        for way in (causal_text(module, 3, multiple), None):
            model = FeatureModel(module, way)
            prepared = tokens if way is None else way.grouping.group(tokens)
            assert isinstance(prepared, GroupedTexts) is (way is not None)
            output = model(torch.zeros((1, 3, 16, 16)), prepared)[TEXT]
            module.zero_grad()
            (output * weights).sum().backward()
            features.append(output.detach())
            gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
        torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-6)
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[1].items():
            torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-5, msg=name)

    def test_a_caption_without_an_end_token_is_taken_where_the_model_takes_it(self, tmp_path: Path) -> None:
        module: Any = build(tmp_path, pool_type="eos", eos_id=49407)
        tokens = torch.randint(1, 1000, (4, CONTEXT), generator=torch.Generator().manual_seed(2))
        way = grouped(module)
        torch.testing.assert_close(
            way.encode(way.grouping.group(tokens)), module.encode_text(tokens), rtol=0, atol=1e-6
        )


class TestWhereItDoesNotApply:
    @pytest.mark.parametrize(
        ("custom_text", "text"),
        [
            (True, {"no_causal_mask": True}),
            (True, {"embed_cls": True}),
            (False, {"pool_type": "last"}),
            (True, {"output_tokens": True}),
        ],
    )
    def test_other_towers_are_left_to_themselves(
        self, tmp_path: Path, custom_text: bool, text: dict[str, Any]
    ) -> None:
        assert causal_text(build(tmp_path, custom_text, **text), 4, 1) is None

    def test_one_group_is_the_model_itself(self, new_clip: Callable[[], ClipModel]) -> None:
        assert causal_text(new_clip().module, 1, 1) is None

    def test_models_that_are_not_open_clips_own_are_left_to_themselves(self) -> None:
        assert causal_text(torch.nn.Linear(2, 2), 4, 1) is None
