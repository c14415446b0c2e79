"""Batches of features: the same pairs at the same positions as batches of images, and the same training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trials import BATCH, DENSE_TRIAL, EXPERT_TRIAL, SEED_TRIAL, assert_same_weights, weights

from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError
from mode_ray.features.worker import FeatureWorker
from mode_ray.models.clip import ClipModel, build_clip, load_clip
from mode_ray.models.locking import lock_towers
from mode_ray.models.trunks import divide
from mode_ray.pairs.feature_rows import FeatureRows
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.order import SampleOrder
from mode_ray.run_directory import ERROR_FILE
from mode_ray.stages.actor import UnitActor
from mode_ray.stages.manifest import Stage
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.feature_data import FeatureDataset
from mode_ray.train.plan import WIDE, Trial
from mode_ray.train.runs.launcher import TrialEnd, checkpoints_folder, fit_trial
from mode_ray.train.runs.reporter import Reporter
from mode_ray.train.runs.trial import TrialJob, read_metrics
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.rank import Rank

Compute = Callable[..., Location]
MakeConfig = Callable[..., RunConfig]
MakeJob = Callable[..., TrialJob]
Fields = dict[str, Any]

LOCK = {"image": {"groups": 1}, "text": {"groups": 1}}


@pytest.fixture
def locked(architecture: Path) -> Fields:
    """Fields of `train` for a model whose projections alone are trained, on features."""
    return {"model": {"architecture": str(architecture), "lock": LOCK}, "data": {"mode": "features"}}


@pytest.fixture
def computed(make_config: MakeConfig, work_units: list[WorkUnit], locked: Fields) -> Compute:
    """Runs the features stage without Ray; its arguments are fields of `features`."""

    def compute(**features: Any) -> Location:  # noqa: ANN401
        config = with_features(make_config(**locked), features)
        directory = config.directory / "features"
        stage = Stage("features", directory, {})
        stage.begin(len(work_units))
        stage.finish(list(UnitActor(FeatureWorker(config), directory, stage.attempt, 0).process(work_units)), {})
        return directory

    return compute


def with_features(config: RunConfig, features: Fields) -> RunConfig:
    return RunConfig.model_validate({**config.model_dump(), "features": features})


class TestABatch:
    def test_it_has_the_pairs_of_the_batch_of_images(
        self,
        computed: Compute,
        make_config: MakeConfig,
        all_pairs: PairIndex,
        new_clip: Callable[[], ClipModel],
        locked: Fields,
    ) -> None:
        rows = FeatureRows.open(computed(views=3))
        config = make_config(**locked)
        features = FeatureDataset(rows, all_pairs, SampleOrder(48, 7), seed=7)[range(40, 56)]
        images = PairDataset(all_pairs, config, new_clip(), seed=7)[range(40, 56)]
        assert torch.equal(features.caption_ids, images.caption_ids)
        assert (features.images.shape, features.images.dtype) == ((16, 16), torch.float16)
        assert isinstance(features.texts, torch.Tensor)
        assert features.texts.shape == (16, 16)

    def test_its_views_depend_on_the_position_and_the_seed_alone(
        self,
        computed: Compute,
        all_pairs: PairIndex,
    ) -> None:
        rows = FeatureRows.open(computed(views=8))

        def images(seed: int, *parts: range) -> torch.Tensor:
            data = FeatureDataset(rows, all_pairs, SampleOrder(48, 0), seed)
            return torch.cat([data[part].images for part in parts])

        whole = images(0, range(48))
        assert torch.equal(images(0, range(13), range(13, 48)), whole)
        assert not torch.equal(images(1, range(48)), whole)
        again = images(0, range(48 * 20, 48 * 21))  # another epoch has another order, and other views
        assert len({tuple(row) for row in torch.cat([whole, again]).tolist()}) > 48 + 24

    def test_every_rank_gets_its_part(
        self, computed: Compute, make_config: MakeConfig, all_pairs: PairIndex, locked: Fields
    ) -> None:
        data = FeatureDataset(FeatureRows.open(computed()), all_pairs, SampleOrder(48, 0), seed=0)
        placement = make_config(**locked).train.placement
        parts = [list(train_loader(data, range(0, 24, 8), Rank(number, 2), placement)) for number in range(2)]
        joined = [torch.cat([one.images, other.images]) for one, other in zip(*parts, strict=True)]
        assert all(torch.equal(joined[at], data[range(8 * at, 8 * at + 8)].images) for at in range(3))
        ledgers = [sum(batch.ledger for batch in part) for part in parts]
        assert sum(ledgers) % 2**63 == sum(data[range(8 * at, 8 * at + 8)].ledger for at in range(3)) % 2**63


class TestAnImageThatCannotBeDecoded:
    def rows(self, rows: FeatureRows, bad: list[int]) -> FeatureRows:
        """The same features, some pairs without an image."""
        image_p = rows.image_p.copy()
        image_p[bad] = -1
        return FeatureRows(
            **{**vars(rows), "image_p": image_p, "problems": {pair: f"pair {pair}: damaged" for pair in bad}}
        )

    def test_another_pair_of_the_batch_replaces_it_and_it_is_counted(
        self,
        computed: Compute,
        all_pairs: PairIndex,
    ) -> None:
        rows = self.rows(FeatureRows.open(computed()), [2, 5])
        order = SampleOrder(48, 0)
        whole = [FeatureDataset(rows, all_pairs, order, 0)[range(at, at + 8)] for at in range(0, 48, 8)]
        assert sorted(problem for batch in whole for problem in batch.bad_images) == [
            "pair 2: damaged",
            "pair 5: damaged",
        ]
        assert not any((batch.images == 0).all(dim=1).any() for batch in whole)
        assert all(len(batch.images) == len(batch.texts) == len(batch.caption_ids) == 8 for batch in whole)

    def test_a_batch_without_any_image_ends_the_run(self, computed: Compute, all_pairs: PairIndex) -> None:
        rows = self.rows(FeatureRows.open(computed()), list(range(48)))
        with pytest.raises(DataError, match="no image of a whole batch can be decoded; the first: pair"):
            FeatureDataset(rows, all_pairs, SampleOrder(48, 0), 0)[range(8)]


class TestTheLoop:
    def test_features_train_as_the_trunk_in_the_loop(
        self,
        make_config: MakeConfig,
        new_clip: Callable[[], ClipModel],
        locked: Fields,
    ) -> None:
        """In float32: what the stage adds is the rounding of stored features to float16."""
        images = torch.rand((6 * BATCH, 3, 16, 16), generator=torch.Generator().manual_seed(0))
        losses = []
        for mode in ("index", "features"):
            config, clip = make_config(**{**locked, "data": {"mode": mode}}), new_clip()
            lock_towers(clip.module, config.train.model.lock)
            inputs = (images, clip.tokenizer([f"picture {number}" for number in range(6 * BATCH)]))
            if mode == "features":
                parts = divide(clip.module.eval())
                with torch.no_grad():
                    inputs = (parts.image.trunk(inputs[0]), parts.text.trunk(inputs[1]))
            loop = TrainLoop(
                clip.module, Trial(name="dense", members=DENSE_TRIAL.members, samples=48), config.train, 0.0
            )
            first, second = (torch.split(one, BATCH) for one in inputs)
            batches = [TrainBatch(*pair, torch.arange(BATCH)) for pair in zip(first, second, strict=True)]
            losses.append([loop.step(batch) for batch in batches])
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        assert losses[0][-1] != pytest.approx(losses[0][0], abs=1e-3)


class TestATrial:
    def test_it_trains_the_heads_and_leaves_a_whole_model(
        self,
        computed: Compute,
        make_job: MakeJob,
        locked: Fields,
    ) -> None:
        computed(views=2)
        job = make_job(DENSE_TRIAL, **locked)
        assert fit_trial(job) == TrialEnd()
        before, after = new_clip_state(job), weights(job.folder)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed == {"visual.proj", "text_projection", "logit_scale"}
        assert load_clip(job.folder).module.encode_image(torch.zeros(1, 3, 16, 16)).shape == (1, 16)  # type: ignore[operator]
        history = read_metrics(job.folder)["history"]
        assert history[-1]["loss"] < history[0]["loss"]

    def test_an_expert_continues_the_seed(self, computed: Compute, make_job: MakeJob, locked: Fields) -> None:
        computed()
        assert fit_trial(make_job(SEED_TRIAL, **locked)) == TrialEnd()
        job = make_job(EXPERT_TRIAL, **locked)
        assert fit_trial(job) == TrialEnd()
        assert read_metrics(job.folder)["pairs"] == 24

    def test_a_run_that_was_cut_off_ends_with_the_weights_of_one_that_was_not(
        self,
        computed: Compute,
        make_job: MakeJob,
        locked: Fields,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        computed(views=4)
        job = make_job(DENSE_TRIAL, **locked, placement={"checkpoint_interval_seconds": 1e-9})
        fit_trial(job)
        expected, ledger = weights(job.folder), read_metrics(job.folder)["ledger"]
        job.folder.delete()
        after_step = Reporter.after_step_on_all_ranks

        def die(self: Reporter) -> None:
            after_step(self)
            self.wait_on_all_ranks()
            if self._loop.state.samples_seen == 3 * BATCH:
                raise ConnectionError("machine lost")

        with monkeypatch.context() as patch:
            patch.setattr(Reporter, "after_step_on_all_ranks", die)
            with pytest.raises(ConnectionError):
                fit_trial(job)
        assert fit_trial(job) == TrialEnd()
        assert_same_weights(weights(job.folder), expected)
        assert read_metrics(job.folder)["ledger"] == ledger

    def test_other_features_have_other_checkpoints(self, make_job: MakeJob, locked: Fields) -> None:
        job = make_job(DENSE_TRIAL, **locked)
        other = TrialJob(**{**vars(job), "config": with_features(job.config, {"views": 5})})
        assert checkpoints_folder(job) != checkpoints_folder(other)

    def test_a_relative_run_directory_is_the_driver_s(self, make_job: MakeJob, locked: Fields) -> None:
        job = make_job(DENSE_TRIAL, **locked)
        elsewhere = TrialJob(**{**vars(job), "config": job.config.model_copy(update={"run": "grown/C"})})
        assert elsewhere.features == job.assignments.parent / "features"


class TestRefused:
    def ended(self, job: TrialJob) -> str:
        reason = fit_trial(job).reason
        assert reason is not None
        assert (job.folder / ERROR_FILE).read_text() == reason
        return reason

    def test_features_of_other_weights(self, computed: Compute, make_job: MakeJob, locked: Fields) -> None:
        computed()
        assert "of other weights than the model's locked parts" in self.ended(make_job(DENSE_TRIAL, **locked, seed=9))

    def test_features_of_another_transform(
        self, computed: Compute, make_job: MakeJob, locked: Fields, architecture: Path, tmp_path: Path
    ) -> None:
        computed()
        model = json.loads((architecture / "open_clip_config.json").read_text())
        (tmp_path / "open_clip_config.json").write_text(json.dumps({**model, "preprocess_cfg": {"mean": [0.5] * 3}}))
        job = make_job(DENSE_TRIAL, **{**locked, "model": {"architecture": str(tmp_path), "lock": LOCK}})
        assert "are of another image transform than the model's" in self.ended(job)

    def test_no_features_at_all(self, make_job: MakeJob, locked: Fields) -> None:
        assert "the features stage is not done" in self.ended(make_job(DENSE_TRIAL, **locked))

    @pytest.mark.parametrize(
        ("lock", "said"),
        [
            ({"image": {"groups": 2}, "text": "all"}, "features can be shared only of a tower whose projection alone"),
            ({"image": "all", "text": "all"}, "there is nothing to train"),
        ],
    )
    def test_locks_without_a_trunk_or_a_head(
        self,
        make_job: MakeJob,
        locked: Fields,
        lock: Fields,
        said: str,
    ) -> None:
        model = {**locked["model"], "lock": lock}
        assert said in self.ended(make_job(DENSE_TRIAL, **{**locked, "model": model}))


def new_clip_state(job: TrialJob) -> dict[str, torch.Tensor]:
    """The weights that the trial begins with."""
    return build_clip(job.config.train.model, job.config.train.seed).module.state_dict()


class TestTheWideControl:
    def test_it_trains_as_many_parameters_as_all_experts(
        self,
        computed: Compute,
        make_job: MakeJob,
        locked: Fields,
    ) -> None:
        computed()
        jobs = [
            make_job(trial, **locked)
            for trial in (DENSE_TRIAL, Trial(name=WIDE, members=DENSE_TRIAL.members, samples=32))
        ]
        for job in jobs:
            assert fit_trial(job) == TrialEnd()
        dense, wide = (
            sum(
                tensor.numel()
                for name, tensor in weights(job.folder).items()
                if name in ("visual.proj", "text_projection")
            )
            for job in jobs
        )
        assert wide == 2 * dense
        assert load_clip(jobs[1].folder).module.encode_text(torch.zeros(1, 16, dtype=torch.long)).shape == (1, 32)  # type: ignore[operator]
        assert np.isfinite(read_metrics(jobs[1].folder)["history"][-1]["loss"])
