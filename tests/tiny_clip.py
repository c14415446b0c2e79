"""Fixtures that the tests of several packages import: a CLIP with one layer a tower."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mode_ray.config.train import ModelConfig
from mode_ray.models.clip import ClipModel, build_clip


@pytest.fixture(scope="session")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of a CLIP with one layer a tower."""
    folder = tmp_path_factory.mktemp("architecture")
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return folder


@pytest.fixture(scope="session")
def new_clip(architecture: Path) -> Callable[[], ClipModel]:
    """Makes the same freshly initialised model every time; the tokenizer, slow to build, is built once."""
    clip = build_clip(ModelConfig(architecture=str(architecture), precision="float32"), seed=7)
    return lambda: replace(clip, module=copy.deepcopy(clip.module))
