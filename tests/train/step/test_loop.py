"""The loop learns, goes on exactly where it stopped, and stops where it must."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mode_ray.config.run import RunConfig
from mode_ray.config.train import TrainPlacement
from mode_ray.errors import DataError, TrainingError
from mode_ray.models.clip import ClipModel
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.members import TrainingSet
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.plan import Trial
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.rank import ONLY_RANK

BATCH = 8


def trial(samples: int) -> Trial:
    return Trial(name="n2/00", members=TrainingSet(kind="all"), samples=samples)


class Run:
    """A loop with its model and data."""

    def __init__(self, clip: ClipModel, pairs: PairIndex, config: RunConfig, samples: int) -> None:
        self.clip, self.samples = clip, samples
        self.loop = TrainLoop(clip.module, trial(samples), config.train, config.limits.max_bad_image_share)
        self.points: list[dict[str, float]] = []
        self._dataset = PairDataset(pairs, config, clip, seed=7)

    def go(self, after_step: Callable[[], None] = lambda: None) -> "Run":
        def loader(first: int) -> Any:  # noqa: ANN401
            return train_loader(self._dataset, range(first, self.samples, BATCH), ONLY_RANK, TrainPlacement())

        self.loop.run(loader, self.points.append, after_step)
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.clip.module.state_dict().items()}


@pytest.fixture
def make_run(
    new_clip: Callable[[], ClipModel], all_pairs: PairIndex, make_config: Callable[..., RunConfig]
) -> Callable[..., Run]:
    def make(samples: int = 10 * BATCH, **train: Any) -> Run:  # noqa: ANN401
        return Run(new_clip(), all_pairs, make_config(**train), samples)

    return make


@pytest.fixture
def batch(new_clip: Callable[[], ClipModel]) -> TrainBatch:
    """Pictures of noise, each with a text of its own."""
    texts = new_clip().tokenizer([f"picture {number}" for number in range(BATCH)])
    images = torch.randn((BATCH, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return TrainBatch(images, texts, torch.arange(BATCH))


def test_pixels_and_grouped_captions_train_as_the_floats_and_tokens_of_before(
    new_clip: Callable[[], ClipModel], all_pairs: PairIndex, make_config: Callable[..., RunConfig]
) -> None:
    config, losses = make_config(), []
    for former in (False, True):
        clip = new_clip()
        loop = TrainLoop(clip.module, trial(6 * BATCH), config.train, 0.0)
        dataset = PairDataset(all_pairs, config, clip, 7, prepare=None if former else loop.prepare_texts)
        batches = [dataset[range(start, start + BATCH)] for start in range(0, 6 * BATCH, BATCH)]
        if former:  # the loader's floats of version 0.1.0
            visual: Any = clip.module.visual
            mean, std = (torch.tensor(visual.preprocess_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
            floats = [torch.addcmul(-mean / std, batch.images.float(), 1 / (255 * std)) for batch in batches]
            batches = [replace(batch, images=images) for batch, images in zip(batches, floats, strict=True)]
        losses.append([loop.step(batch) for batch in batches])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 6


def with_bad_images(batch: TrainBatch, count: int) -> TrainBatch:
    return replace(batch, bad_images=tuple(f"a.tar: sample {number}: damaged" for number in range(count)))


def assert_bit_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


class TestTraining:
    def test_it_learns_to_tell_the_colours(self, make_run: Callable[..., Run]) -> None:
        samples = 240 * BATCH
        run = make_run(samples, dense_samples=samples, placement={"log_interval_steps": 10}).go()
        losses = [point["loss"] for point in run.points]
        # Eight pairs of four colours: guessing costs log 8, knowing the colours about log 2.
        assert losses[1] == pytest.approx(math.log(8), abs=0.3)
        assert sum(losses[-4:]) / 4 < math.log(4)

    def test_it_ends_exactly_at_the_trials_samples(self, make_run: Callable[..., Run]) -> None:
        steps = []
        run = make_run(5 * BATCH).go(lambda: steps.append(1))
        assert run.loop.state.samples_seen == 5 * BATCH
        assert len(steps) == 5

    def test_points_are_logged_at_the_interval_and_at_the_end(self, make_run: Callable[..., Run]) -> None:
        run = make_run(5 * BATCH, placement={"log_interval_steps": 2}).go()
        assert [point["samples"] for point in run.points] == [2 * BATCH, 4 * BATCH, 5 * BATCH]
        assert run.points == run.loop.state.history
        for point in run.points:
            assert point["samples_per_second"] > 0
            assert 0 <= point["data_wait_share"] <= 1
            assert point["learning_rate"] >= 0

    def test_a_finished_trial_is_left_alone(self, make_run: Callable[..., Run]) -> None:
        run = make_run(2 * BATCH).go()
        before = run.weights()
        run.go()
        assert_bit_equal(run.weights(), before)

    def test_bfloat16_changes_the_arithmetic_not_the_weights_type(self, make_run: Callable[..., Run]) -> None:
        full = make_run(2 * BATCH).go()
        architecture = full.loop._config.model.architecture
        half = make_run(2 * BATCH, model={"architecture": architecture, "precision": "bfloat16"}).go()
        assert {tensor.dtype for tensor in half.clip.module.parameters()} == {torch.float32}
        assert half.points[-1]["loss"] == pytest.approx(full.points[-1]["loss"], abs=0.1)
        assert half.points[-1]["loss"] != full.points[-1]["loss"]


class TestGoingOn:
    def test_a_restored_run_equals_an_uninterrupted_one_bit_for_bit(self, make_run: Callable[..., Run]) -> None:
        whole = make_run().go()
        first, kept = make_run(), []

        def keep() -> None:
            if first.loop.state.samples_seen == 4 * BATCH:
                kept.append(first.loop.gather_snapshot())

        first.go(keep)
        second = make_run()
        second.loop.load_weights_on_all_ranks(kept[0].weights)
        second.loop.load_state_on_all_ranks(kept[0].state, continues=True)
        assert second.loop.state.samples_seen == 4 * BATCH
        second.go()
        assert_bit_equal(second.weights(), whole.weights())
        history = [[(point["samples"], point["loss"]) for point in run.loop.state.history] for run in (whole, second)]
        assert history[0] == history[1]

    def test_an_expert_takes_over_the_parents_optimizer_but_not_its_count(self, make_run: Callable[..., Run]) -> None:
        parent = make_run(4 * BATCH).go()
        child = make_run()
        child.loop.load_state_on_all_ranks(parent.loop.gather_snapshot().state, continues=False)
        assert child.loop.state.samples_seen == 0
        assert child.loop.state.history == []
        moments = [loop._optimizer.state_dict()["state"] for loop in (parent.loop, child.loop)]
        assert moments[0].keys() == moments[1].keys()
        assert all(torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"]) for key in moments[0])
        assert {int(moment["step"]) for moment in moments[1].values()} == {4}

    def test_the_state_is_loaded_without_running_code_in_it(self, make_run: Callable[..., Run]) -> None:
        run = make_run()
        payload = b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00truetR."
        with pytest.raises(Exception, match="Weights only load failed"):
            run.loop.load_state_on_all_ranks(payload, continues=True)


class TestSteps:
    def test_the_rate_of_a_step_is_that_of_the_samples_it_completes(
        self, make_run: Callable[..., Run], batch: TrainBatch
    ) -> None:
        # Warm-up of two batches: the first step moves at half of the peak, the second at all of it.
        run = make_run(8 * BATCH)
        rates = []
        for _ in range(8):
            run.loop.step(batch)
            rates.append(run.loop._optimizer.param_groups[0]["lr"])
        assert rates[:2] == pytest.approx([1.5e-3, 3e-3])
        assert rates[-1] == pytest.approx(0.0, abs=1e-9)

    @pytest.mark.parametrize(("start", "end"), [(9.0, math.log(100)), (-5.0, 0.0)])
    def test_the_logit_scale_stays_between_1_and_100(
        self, make_run: Callable[..., Run], batch: TrainBatch, start: float, end: float
    ) -> None:
        run = make_run()
        with torch.no_grad():
            run.clip.module.logit_scale.fill_(start)  # type: ignore[operator]
        run.loop.step(batch)
        assert float(run.clip.module.logit_scale) == pytest.approx(end)  # type: ignore[arg-type]

    def test_weight_decay_spares_gains_biases_and_the_logit_scale(self, make_run: Callable[..., Run]) -> None:
        run = make_run(optimizer={"weight_decay": 0.3})
        groups = run.loop._optimizer.param_groups
        decayed = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        names = dict(run.clip.module.named_parameters())
        assert len(decayed) == len(names)
        for name, parameter in names.items():
            spared = name.endswith("bias") or ".ln_" in name or name in {"logit_scale", "visual.class_embedding"}
            if parameter.ndim >= 2:
                assert decayed[id(parameter)] == 0.3, name
            if spared or "ln_final" in name:
                assert decayed[id(parameter)] == 0.0, name

    def test_the_gradient_is_clipped_to_the_norm_asked_for(
        self, make_run: Callable[..., Run], batch: TrainBatch
    ) -> None:
        run = make_run(optimizer={"gradient_norm_clip": 1e-3})
        run.loop.step(batch)
        norms = [p.grad.norm() for p in run.clip.module.parameters() if p.grad is not None]
        assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)

    def test_a_loss_that_is_no_number_ends_the_run(self, make_run: Callable[..., Run]) -> None:
        run = make_run()
        with torch.no_grad():
            run.clip.module.visual.proj.fill_(float("nan"))  # type: ignore[union-attr, operator]
        with pytest.raises(TrainingError, match=r"n2/00: the loss is nan after 0 samples; lower .*learning_rate"):
            run.go()


class TestBadImages:
    def test_a_few_are_counted_and_tolerated(self, make_run: Callable[..., Run], batch: TrainBatch) -> None:
        run = make_run()
        run.loop.step(with_bad_images(batch, 3))
        run.loop.step(with_bad_images(batch, 2))
        assert (run.loop.state.bad_images, run.loop.state.first_bad_image) == (5, "a.tar: sample 0: damaged")

    def test_too_many_end_the_run_and_the_first_is_named(
        self, make_run: Callable[..., Run], batch: TrainBatch
    ) -> None:
        run = make_run(limits={"max_bad_image_share": 0.01})
        run.loop.step(with_bad_images(batch, 6))
        with pytest.raises(DataError, match=r"n2/00: 12 of 16 .*max_bad_image_share=0\.01.*first: a\.tar: sample 0"):
            run.loop.step(with_bad_images(batch, 6))

    def test_the_share_is_the_users_to_choose(self, make_run: Callable[..., Run], batch: TrainBatch) -> None:
        run = make_run(limits={"max_bad_image_share": 1.0})
        for _ in range(3):
            run.loop.step(with_bad_images(batch, 8))
        assert run.loop.state.bad_images == 24
