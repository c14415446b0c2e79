"""What the files of models say about them, without loading the models."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from mode_ray.config.train import ModelConfig
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.models.files import weights_mark
from mode_ray.models.shared_weights import shared_weights
from mode_ray.storage import Location


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, architecture: Path) -> list[Location]:
    """Three models with one trunk."""
    clip = build_clip(ModelConfig(architecture=str(architecture), precision="float32"), seed=0)
    found = []
    for number in range(3):
        module: Any = copy.deepcopy(clip.module)
        with torch.no_grad():
            module.visual.proj += 0.1 * number
            module.text_projection += 0.1 * number
        found.append(Location.parse(str(tmp_path_factory.mktemp("model") / f"{number:02d}")))
        save_clip(found[-1], clip, module.state_dict())
    return found


def test_the_mark_of_a_model_with_locked_parts_covers_what_is_trained(folders: list[Location]) -> None:
    assert len({weights_mark(folder, locked=True) for folder in folders}) == 3


def test_the_mark_of_other_models_is_as_in_earlier_indexes(folders: list[Location]) -> None:
    data = Path(folders[0].path, "open_clip_model.safetensors").read_bytes()
    expected = hashlib.blake2b(len(data).to_bytes(8, "little") + data[-(1 << 16) :], digest_size=8).hexdigest()
    assert weights_mark(folders[0], locked=False) == expected


def test_the_shared_part_is_counted_once(folders: list[Location]) -> None:
    found = shared_weights(folders)
    assert found is not None
    size = Path(folders[0].path, "open_clip_model.safetensors").stat().st_size
    heads = 2 * 16 * 16 * 4
    assert found.share == pytest.approx(1.0 - heads / size, abs=0.01)
    assert found.size == pytest.approx(1.0 + 2 * heads / size, abs=0.01)
    assert str(found).startswith("3 experts share 99.")


def test_models_that_share_nothing_or_differ_in_shape_say_nothing(
    folders: list[Location], tmp_path: Path, architecture: Path
) -> None:
    config = ModelConfig(architecture=str(architecture), precision="float32")
    other = Location.parse(str(tmp_path / "other"))
    save_clip(other, build_clip(config, seed=5))
    found = shared_weights([folders[0], other])
    assert found is None
    assert shared_weights(folders[:1]) is None
