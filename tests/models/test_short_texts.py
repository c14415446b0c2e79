"""Texts encoded without their padding have open_clip's features."""

import open_clip
import pytest
import torch

from mode_ray.models.short_texts import short_text_features

CONTEXT = 24
VISION = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
BATCHES: tuple[list[str], ...] = (
    ["a cat"],
    ["a cat", "a tall tower in the fog"],
    ["", "a"],
    ["word " * CONTEXT, "a cat"],
    [],
)


@pytest.mark.parametrize("fields", [{}, {"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "first"}])
def test_the_features_are_those_of_open_clip(fields: dict[str, object]) -> None:
    torch.manual_seed(0)
    module = open_clip.CLIP(embed_dim=8, vision_cfg=VISION, text_cfg={**TEXT, **fields}, output_dict=True).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)
    for texts in BATCHES:
        tokens_bt = tokenizer(texts) if texts else torch.zeros((0, CONTEXT), dtype=torch.long)
        with torch.inference_mode():
            expected = module.encode_text(tokens_bt)
            torch.testing.assert_close(short_text_features(module, tokens_bt), expected, atol=1e-6, rtol=0)
