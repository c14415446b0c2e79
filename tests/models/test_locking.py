"""Locked towers: no gradients, statistics that stay, and the same hash for the same weights."""

from typing import Any

import pytest
import torch

from mode_ray.config.train import LockConfig, ModelConfig
from mode_ray.errors import UsageError
from mode_ray.models.clip import build_clip
from mode_ray.models.locking import lock_towers, locked_state, set_training, state_hash


def built(architecture: str, **lock: object) -> Any:  # noqa: ANN401 - an open_clip model
    module = build_clip(ModelConfig(architecture=architecture), seed=0).module
    lock_towers(module, LockConfig.model_validate(lock))
    return module


def trainable(module: torch.nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_nothing_is_locked_by_default() -> None:
    module = built("package:mode_ray/presets/demo-vit")
    assert trainable(module) == {name for name, _ in module.named_parameters()}
    assert locked_state(module) == {}


@pytest.mark.parametrize("architecture", ["package:mode_ray/presets/demo-vit", "RN50"])
def test_all_leaves_the_other_tower_and_the_temperature(architecture: str) -> None:
    module = built(architecture, image="all")
    names = trainable(module)
    assert "logit_scale" in names
    assert any(name.startswith("transformer.") for name in names)
    assert not any(name.startswith("visual.") and "proj" not in name for name in names)
    assert set(locked_state(module)) >= {name for name, _ in module.named_parameters()} - names


def test_the_last_groups_stay_trainable() -> None:
    some, less = trainable(built("ViT-S-32", image={"groups": 3})), trainable(built("ViT-S-32", image={"groups": 1}))
    assert less < some
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" not in some


def test_locked_batch_norms_keep_their_statistics() -> None:
    module = built("RN50", image="all")
    set_training(module)
    before = {name: tensor.clone() for name, tensor in module.visual.state_dict().items()}
    module.encode_image(torch.randn(2, 3, 224, 224))
    for name, tensor in module.visual.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert module.transformer.training
    assert "visual.bn1.running_mean" in locked_state(module)


def test_the_hash_is_of_names_shapes_types_and_values() -> None:
    state = {"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64)}
    hashes = {
        state_hash(changed)
        for changed in (
            state,
            dict(reversed(list(state.items()))),
            {**state, "a": torch.ones(3, 2)},
            {**state, "a": torch.ones(2, 3, dtype=torch.float64)},
            {**state, "a": torch.full((2, 3), 2.0)},
            {"a": state["a"], "c": state["b"]},
        )
    }
    assert len(hashes) == 5  # the order of the names does not count


@pytest.mark.parametrize(
    ("architecture", "lock", "said"),
    [
        ("ViT-S-32", {"image": {"groups": 99}}, r"lock\.image: "),
        ("package:mode_ray/presets/demo-vit", {"text": {"groups": 99}}, r"lock\.text: "),
    ],
)
def test_groups_that_the_tower_does_not_have(architecture: str, lock: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        built(architecture, **lock)
