"""Trials that the tests of workers train, and how their weights are looked at."""

import safetensors.torch
import torch

from mode_ray.models.architecture import WEIGHTS_FILE
from mode_ray.pairs.members import TrainingSet
from mode_ray.storage import Location
from mode_ray.train.plan import SEED, Trial

BATCH = 8
SEED_TRIAL = Trial(name=SEED, members=TrainingSet(kind="all"), samples=4 * BATCH, last_progress=0.5)
EXPERT_TRIAL = Trial(
    name="n2/01",
    members=TrainingSet(kind="expert", experts=2, expert=1),
    samples=4 * BATCH,
    first_progress=0.5,
    parent=SEED,
)
DENSE_TRIAL = Trial(name="dense", members=TrainingSet(kind="all", seed=1), samples=8 * BATCH)


def weights(folder: Location) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = safetensors.torch.load((folder / WEIGHTS_FILE).read_bytes())
    return tensors


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
