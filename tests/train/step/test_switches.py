"""Every switch of the loop against a plain one: open_clip's model and loss, and AdamW, written out."""

import copy
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig, TrainConfig
from mode_ray.errors import UsageError
from mode_ray.models.clip import build_clip
from mode_ray.pairs.members import TrainingSet
from mode_ray.train.learning_rate import learning_rate
from mode_ray.train.plan import Trial
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import NonFiniteError, TrainLoop
from mode_ray.train.step.parallel import MOST_GRAPHS, compiled_graphs

BATCH = 16
STEPS = 5
RATE = 3e-3
MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def build(folder: Path, logit_bias: bool = False, **vision: Any) -> torch.nn.Module:  # noqa: ANN401
    model = {**MODEL, "vision_cfg": MODEL["vision_cfg"] | vision}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    config = ModelConfig(architecture=str(folder), precision="float32")
    return build_clip(config, seed=1, logit_bias=logit_bias).module


def train_config(make_config: Callable[..., RunConfig], **fields: Any) -> TrainConfig:  # noqa: ANN401
    optimizer = {"learning_rate": RATE, "warmup_samples": 2 * BATCH}
    placement = {"text_length_groups": 1} | fields.pop("placement", {})
    config = make_config(
        batch_size=BATCH, dense_samples=STEPS * BATCH, optimizer=optimizer, placement=placement, **fields
    ).train
    assert config.model.precision == "float32" or "model" in fields
    return config


def loop_of(module: torch.nn.Module, config: TrainConfig) -> TrainLoop:
    trial = Trial(name="dense", members=TrainingSet(kind="all"), samples=STEPS * BATCH)
    return TrainLoop(module, trial, config, max_bad_image_share=0.0)


@pytest.fixture(scope="module")
def batches() -> list[TrainBatch]:
    """Images of noise; captions of many lengths."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=MODEL["text_cfg"]["context_length"])
    generator = torch.Generator().manual_seed(0)
    return [
        TrainBatch(
            torch.randn((BATCH, 3, 32, 32), generator=generator),
            tokenizer([f"{step} picture " * (number % 5) for number in range(BATCH)]),
            torch.arange(BATCH),
        )
        for step in range(STEPS)
    ]


def plain_losses(module: Any, batches: list[TrainBatch], loss: Any) -> list[float]:  # noqa: ANN401
    """Train a copy of the model without any of the loop's code."""
    module = copy.deepcopy(module)
    decayed = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(RATE, (step + 1) / STEPS, 2 / STEPS)
        value = loss(**module(batch.images, batch.texts))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def poison(batch: TrainBatch) -> TrainBatch:
    images = batch.images.clone()
    images[3, 0, 0, 0] = math.nan
    return replace(batch, images=images)


SWITCHES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "micro-batches": {"placement": {"micro_batch_size": 5}},
    "caption groups": {"placement": {"text_length_groups": 4}},
    "gradient checkpointing": {"placement": {"gradient_checkpointing": True}},
    "all of these": {
        "placement": {"micro_batch_size": 4, "text_length_groups": 3, "gradient_checkpointing": True},
        "loss": {"mask_equal_captions": True},
    },
}


class TestClip:
    @pytest.mark.parametrize("switch", SWITCHES)
    def test_five_steps_cost_what_they_cost_a_plain_loop(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch], switch: str
    ) -> None:
        module = build(tmp_path)
        expected = plain_losses(module, batches, ClipLoss())
        assert max(expected) - min(expected) > 0.05
        loop = loop_of(module, train_config(make_config, **SWITCHES[switch]))
        assert [loop.step(batch) for batch in batches] == pytest.approx(expected, abs=1e-3)

    def test_bfloat16_costs_the_same_within_its_rounding(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch]
    ) -> None:
        module = build(tmp_path)
        expected = plain_losses(module, batches, ClipLoss())
        model = {"architecture": str(tmp_path), "precision": "bfloat16"}
        loop = loop_of(module, train_config(make_config, model=model))
        losses = [loop.step(batch) for batch in batches]
        # Half of its last place is 2^-9; features of so few numbers do not average that out.
        assert losses == pytest.approx(expected, rel=2**-8)
        assert losses != pytest.approx(expected, rel=1e-7)

    @pytest.mark.drill
    def test_compiled_blocks_cost_the_same(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch]
    ) -> None:
        module: Any = build(tmp_path)
        expected = plain_losses(module, batches, ClipLoss())
        placement = {"compile": True, "text_length_groups": 2}
        loop = loop_of(module, train_config(make_config, placement=placement))
        assert [loop.step(batch) for batch in batches] == pytest.approx(expected, abs=1e-3)
        assert module.transformer.resblocks[0]._compiled_call_impl is not None
        assert loop.gather_snapshot().weights.keys() == module.state_dict().keys()

    @pytest.mark.drill
    def test_captions_of_other_lengths_compile_no_further_graphs(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch]
    ) -> None:
        module: Any = build(tmp_path)
        context = module.context_length
        loop = loop_of(module, train_config(make_config, placement={"compile": True, "text_length_groups": 3}))
        counts = []
        for step, batch in enumerate([*batches, *batches]):
            assert isinstance(batch.texts, torch.Tensor)
            texts = batch.texts.clone()
            longest = 3 + (7 * step) % (context - 3)
            texts[:, longest - 1 :] = 0
            texts[:, longest - 1] = 49407  # the end token
            loop.step(replace(batch, texts=texts))
            counts.append(compiled_graphs())
        assert counts[-1] == counts[3] > 0
        assert counts[-1] <= MOST_GRAPHS

    @pytest.mark.gpu
    @pytest.mark.parametrize("compiled", [False, True])
    def test_a_gpu_costs_the_same_in_bfloat16(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch], compiled: bool
    ) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        module = build(tmp_path)
        expected = plain_losses(module, batches, ClipLoss())
        model = {"architecture": str(tmp_path), "precision": "bfloat16"}
        config = train_config(
            make_config, model=model, placement={"compile": compiled, "text_length_groups": 4, "micro_batch_size": 8}
        )
        trial = Trial(name="dense", members=TrainingSet(kind="all"), samples=STEPS * BATCH)
        loop = TrainLoop(module, trial, config, 0.0, device=torch.device("cuda"))
        assert [loop.step(batch) for batch in batches] == pytest.approx(expected, rel=3e-3)


class TestSiglip:
    @pytest.mark.parametrize("switch", ["nothing", "micro-batches", "caption groups"])
    def test_five_steps_cost_what_they_cost_a_plain_loop(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch], switch: str
    ) -> None:
        module: Any = build(tmp_path, logit_bias=True)
        assert float(module.logit_scale.exp()) == pytest.approx(10.0)
        assert float(module.logit_bias) == -10.0
        expected = plain_losses(module, batches, SigLipLoss())
        loop = loop_of(module, train_config(make_config, loss={"kind": "siglip"}, **SWITCHES[switch]))
        assert [loop.step(batch) for batch in batches] == pytest.approx(expected, abs=1e-3)

    def test_a_model_without_a_bias_is_refused(self, tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
        with pytest.raises(UsageError, match="the model has no logit bias; set init_logit_bias"):
            loop_of(build(tmp_path), train_config(make_config, loss={"kind": "siglip"}))


class TestMicroBatches:
    def test_dropped_patches_are_the_same_in_both_passes(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch]
    ) -> None:
        """Were they not, the surrogate's gradients would belong to other features than the second pass computes."""
        module: Any = build(tmp_path, patch_dropout=0.5)
        loop = loop_of(module, train_config(make_config, placement={"micro_batch_size": 4}))
        seen: list[torch.Tensor] = []
        module.visual.patch_dropout.register_forward_hook(
            lambda _module, _inputs, output: seen.append(output.detach())
        )
        loop.step(batches[0])
        assert len(seen) == 8
        for first, second in zip(seen[:4], seen[4:], strict=True):
            assert torch.equal(first, second)
        assert not torch.equal(seen[0][0], seen[1][0])

    def test_dropped_patches_do_not_depend_on_what_was_drawn_before(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch]
    ) -> None:
        losses = []
        for draws in (0, 7):
            loop = loop_of(build(tmp_path, patch_dropout=0.5), train_config(make_config))
            torch.rand(draws)
            losses.append(loop.step(batches[0]))
        assert losses[0] == losses[1]

    def test_batch_normalisation_is_refused(self, tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
        module = build(tmp_path, layers=[1, 1, 1, 1])
        with pytest.raises(UsageError, match=r"micro_batch_size: the model has batch normalisation"):
            loop_of(module, train_config(make_config, placement={"micro_batch_size": 4}))


class TestNonFinite:
    @pytest.mark.parametrize("placement", [{}, {"micro_batch_size": 4}])
    def test_a_poisoned_batch_changes_nothing(
        self,
        tmp_path: Path,
        make_config: Callable[..., RunConfig],
        batches: list[TrainBatch],
        placement: dict[str, Any],
    ) -> None:
        poisoned, clean = (loop_of(build(tmp_path), train_config(make_config, placement=placement)) for _ in range(2))
        for loop in (poisoned, clean):
            loop.step(batches[0])
        with pytest.raises(NonFiniteError, match="dense: the loss is nan after 16 samples; lower") as caught:
            poisoned.step(poison(batches[1]))
        assert caught.value.samples_seen == BATCH
        assert poisoned.state.samples_seen == BATCH
        for loop in (poisoned, clean):
            loop.step(batches[2])
        left, right = (loop.gather_snapshot().weights for loop in (poisoned, clean))
        assert all(torch.equal(left[name], right[name]) for name in left)

    def test_a_gradient_that_overflows_changes_nothing(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch]
    ) -> None:
        module: Any = build(tmp_path)
        loop = loop_of(module, train_config(make_config))
        module.visual.proj.register_hook(lambda gradient: gradient * math.inf)
        before = loop.gather_snapshot().weights
        with pytest.raises(NonFiniteError, match=r"the norm of the gradients is (nan|inf) after 0 samples"):
            loop.step(batches[0])
        after = loop.gather_snapshot().weights
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_it_survives_the_way_between_processes(self) -> None:
        error = pickle.loads(pickle.dumps(NonFiniteError("the loss is nan", 32)))  # noqa: S301
        assert (str(error), error.samples_seen) == ("the loss is nan", 32)

    def test_the_batch_is_left_out_when_the_run_comes_to_it_again(
        self, tmp_path: Path, make_config: Callable[..., RunConfig], batches: list[TrainBatch]
    ) -> None:
        data = [replace(batch, ledger=10**number) for number, batch in enumerate(batches)]
        data[2] = poison(data[2])
        loop = loop_of(build(tmp_path), train_config(make_config))
        start = loop.gather_snapshot()

        def loader(first: int) -> Any:  # noqa: ANN401
            return iter(data[first // BATCH :])

        with pytest.raises(NonFiniteError) as caught:
            loop.run(loader, lambda _: None, lambda: None)
        loop.skip(caught.value.samples_seen)
        loop.load_weights_on_all_ranks(start.weights)
        loop.load_state_on_all_ranks(start.state, continues=True)
        loop.run(loader, lambda _: None, lambda: None)
        assert loop.state.samples_seen == STEPS * BATCH
        assert loop.state.skipped == [2 * BATCH]
        assert loop.state.ledger == 11011

        expected = loop_of(build(tmp_path), train_config(make_config))
        for number, batch in enumerate(data):
            if number == 2:
                expected.state.samples_seen += BATCH
            else:
                expected.step(batch)
        left, right = (one.gather_snapshot().weights for one in (loop, expected))
        assert all(torch.equal(left[name], right[name]) for name in left)
