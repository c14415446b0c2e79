"""Two real gloo processes train as one with the whole batch, for every split of the batch and of the model."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mode_ray.config.train import ModelConfig, TrainConfig
from mode_ray.models.clip import build_clip, load_clip, save_clip
from mode_ray.pairs.members import TrainingSet
from mode_ray.storage import Location
from mode_ray.train.plan import Trial
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.parallel import transformer_blocks

BATCH = 8
STEPS = 5
RANKS_SCRIPT = Path(__file__).with_name("ddp_ranks.py")
DEADLINE_SECONDS = 240
# A large epsilon makes AdamW's step smooth in the gradient; at 1e-6 it is its sign, rounding and all.
TRAIN: dict[str, Any] = {
    "model": {"precision": "float32"},
    "optimizer": {"learning_rate": 1e-2, "warmup_samples": 0, "epsilon": 1e-2},
    "dense_samples": STEPS * BATCH,
    "batch_size": BATCH,
}
LOSSES: dict[str, dict[str, Any]] = {
    "clip": {},
    "masked": {"mask_equal_captions": True},
    "siglip": {"kind": "siglip"},
}
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp-micro": {"micro_batch_size": 2},
    "fsdp": {"strategy": "fsdp"},
    "fsdp-micro": {"strategy": "fsdp", "micro_batch_size": 3, "gradient_checkpointing": True},
}


def case(loss: str, way: str = "ddp", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    optimizer = TRAIN["optimizer"] | fields.pop("optimizer", {})
    return {
        "model": "siglip" if loss == "siglip" else "clip",
        "train": TRAIN | {"optimizer": optimizer, "loss": LOSSES[loss], "placement": WAYS[way]},
        "samples": STEPS * BATCH,
        "steps": [0, 1],
        "start": None,
        "poisoned_rank": None,
        **fields,
    }


# The masked pairs do not depend on how the model is distributed.
PAIRS = [(loss, way) for loss in LOSSES for way in WAYS if loss != "masked" or way.startswith("ddp")]
CASES = {
    **{f"{loss}-{way}": case(loss, way) for loss, way in PAIRS},
    "clipped-ddp": case("clip", optimizer={"gradient_norm_clip": 1e-2}),
    "clipped-fsdp": case("clip", "fsdp", optimizer={"gradient_norm_clip": 1e-2}),
    "continued-ddp": case("clip", steps=[2, 3, 4], start="one"),
    "continued-fsdp": case("clip", "fsdp", steps=[2, 3, 4], start="one"),
    "five-ddp": case("clip", steps=list(range(STEPS))),
    "five-fsdp": case("clip", "fsdp", steps=list(range(STEPS))),
    "poisoned-ddp": case("clip", poisoned_rank=1, steps=[0]),
    "poisoned-fsdp": case("clip", "fsdp", poisoned_rank=1, steps=[0]),
}


class Ranks:
    """What two ranks left, and the same on one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batches = safetensors.torch.load_file(folder / "batches.safetensors")

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(self.folder / f"{name}.safetensors")

    def result(self, name: str, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"{name}.rank{rank}.json").read_text())
        return found

    def one_process(self, name: str) -> tuple[TrainLoop, torch.nn.Module]:
        """A loop in this process with the case's loss, the whole batch at once and no sharing."""
        given = CASES[name]
        config = TrainConfig.model_validate_json(json.dumps(given["train"] | {"placement": {}}))
        module = load_clip(Location.parse(str(self.folder / given["model"]))).module
        trial = Trial(name="n2/00", members=TrainingSet(kind="all"), samples=given["samples"])
        return TrainLoop(module, trial, config, 0.5), module

    def batch(self, step: int) -> TrainBatch:
        return TrainBatch(*(self._batches[name][step] for name in ("images", "texts", "ids")), ledger=5)  # type: ignore[arg-type, misc]


@pytest.fixture(scope="module")
def ranks(architecture: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """All cases trained by two processes, which are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    model = ModelConfig(architecture=str(architecture), precision="float32")
    clip = build_clip(model, seed=7)
    save_clip(Location.parse(str(folder / "clip")), clip)
    save_clip(Location.parse(str(folder / "siglip")), build_clip(model, seed=7, logit_bias=True))
    # Captions of many lengths, some of them equal to one on the other rank.
    numbers = [number % 6 for number in range(STEPS * BATCH)]
    texts = clip.tokenizer(["a picture " * number for number in numbers]).reshape(STEPS, BATCH, -1)
    images = torch.randn((STEPS, BATCH, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(numbers).reshape(STEPS, BATCH)
    safetensors.torch.save_file({"images": images, "texts": texts, "ids": ids}, folder / "batches.safetensors")
    (folder / "cases.json").write_text(json.dumps(CASES))
    made = Ranks(folder)
    loop, _ = made.one_process("continued-ddp")
    for step in (0, 1):
        loop.step(made.batch(step))
    snapshot = loop.gather_snapshot()
    safetensors.torch.save_file(dict(snapshot.weights), folder / "one.safetensors")
    (folder / "one.pt").write_bytes(snapshot.state)
    command = [sys.executable, str(RANKS_SCRIPT), str(folder), "2"]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return made


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Within 1e-5, or that share of the tensor's largest entry where it is above 1."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        atol = 1e-5 * max(1.0, float(tensor.abs().max()))
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")  # type: ignore[misc]


@pytest.mark.parametrize(("loss", "way"), PAIRS)
class TestTwoRanks:
    def test_they_train_as_one_process_with_the_whole_batch(self, ranks: Ranks, loss: str, way: str) -> None:
        name = f"{loss}-{way}"
        loop, module = ranks.one_process(name)
        start = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        losses = [loop.step(ranks.batch(step)) for step in (0, 1)]
        assert ranks.result(name, 0)["losses"] == pytest.approx(losses, abs=1e-5)
        assert ranks.result(name, 1)["losses"] == ranks.result(name, 0)["losses"]
        gradients = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
        assert "logit_scale" in gradients
        assert ("logit_bias" in gradients) is (loss == "siglip")
        assert_close(ranks.tensors(f"{name}.gradients"), gradients)
        weights = dict(module.state_dict())
        assert max(float((weights[key] - start[key]).abs().max()) for key in weights) > 1e-3
        assert_close(ranks.tensors(name), weights)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
class TestStrategies:
    def test_five_steps_cost_what_they_cost_one_process(self, ranks: Ranks, way: str) -> None:
        loop, _ = ranks.one_process("five-ddp")
        losses = [loop.step(ranks.batch(step)) for step in range(STEPS)]
        assert ranks.result(f"five-{way}", 0)["losses"] == pytest.approx(losses, abs=1e-3)

    def test_the_clipped_norm_is_that_of_all_gradients_together(self, ranks: Ranks, way: str) -> None:
        gradients = ranks.tensors(f"clipped-{way}.gradients")
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        assert norm == pytest.approx(1e-2, rel=1e-4)

    def test_a_run_of_one_process_resumes_with_two(self, ranks: Ranks, way: str) -> None:
        loop, module = ranks.one_process("continued-ddp")
        for step in range(STEPS):
            loop.step(ranks.batch(step))
        assert_close(ranks.tensors(f"continued-{way}"), dict(module.state_dict()))
        assert ranks.result(f"continued-{way}", 1)["state"]["samples_seen"] == STEPS * BATCH

    def test_a_run_of_two_processes_resumes_with_one(self, ranks: Ranks, way: str) -> None:
        whole, expected = ranks.one_process("clip-ddp")
        for step in range(STEPS):
            whole.step(ranks.batch(step))
        loop, module = ranks.one_process("clip-ddp")
        loop.load_weights_on_all_ranks(ranks.tensors(f"clip-{way}"))
        loop.load_state_on_all_ranks((ranks.folder / f"clip-{way}.pt").read_bytes(), continues=True)
        assert loop.state.samples_seen == 2 * BATCH
        for step in range(2, STEPS):
            loop.step(ranks.batch(step))
        assert_close(dict(module.state_dict()), dict(expected.state_dict()))

    def test_what_the_ranks_met_is_added_up_on_both(self, ranks: Ranks, way: str) -> None:
        states = [ranks.result(f"clip-{way}", rank)["state"] for rank in range(2)]
        assert states[0] == states[1]
        assert states[0]["bad_images"] == 2
        assert states[0]["first_bad_image"] == "a.tar: sample 3: damaged"
        assert states[0]["ledger"] == (2 * (2**62 + 2**62 + 1)) % 2**63

    def test_what_was_added_up_before_counts_once(self, ranks: Ranks, way: str) -> None:
        state = ranks.result(f"continued-{way}", 0)["state"]
        assert state["ledger"] == (2 * 5 + 3 * (2**63 + 1)) % 2**63
        assert state["bad_images"] == 3

    def test_a_batch_that_is_poisoned_on_one_rank_stops_both_before_the_step(self, ranks: Ranks, way: str) -> None:
        name = f"poisoned-{way}"
        assert [ranks.result(name, rank)["error_at"] for rank in range(2)] == [0, 0]
        start = load_clip(Location.parse(str(ranks.folder / "clip"))).module.state_dict()
        weights = ranks.tensors(name)
        assert all(torch.equal(weights[key], start[key]) for key in start)
        assert ranks.result(name, 0)["state"]["samples_seen"] == 0


def test_the_blocks_of_both_towers_are_found(architecture: Path) -> None:
    module = build_clip(ModelConfig(architecture=str(architecture), precision="float32"), seed=7).module
    assert list(transformer_blocks(module)) == ["visual.transformer.resblocks.0", "transformer.resblocks.0"]
