"""Held-out pairs are measured at equal shares of all samples, and no run trains on them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mode_ray.models.clip import load_clip
from mode_ray.pairs.held_out import pair_hash
from mode_ray.pairs.images import decode_image
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.members import TrainingSet
from mode_ray.storage import Location
from mode_ray.train.plan import SEED, Trial
from mode_ray.train.runs.launcher import TrialEnd, fit_trial
from mode_ray.train.runs.measure import recall_at_1
from mode_ray.train.runs.measure_job import MeasureJob, read_curve
from mode_ray.train.runs.trial import TrialJob, read_metrics

BATCH = 8
SEED_TRIAL = Trial(name=SEED, members=TrainingSet(kind="all"), samples=4 * BATCH, last_progress=0.5)
EXPERT_TRIAL = Trial(
    name="n2/01",
    members=TrainingSet(kind="expert", experts=2, expert=1),
    samples=4 * BATCH,
    first_progress=0.5,
    parent=SEED,
)


def job(**values: int) -> MeasureJob:
    fields = {"measurements": 4, "samples_before": 0, "samples_total": 64} | values
    return MeasureJob(pairs=Location.parse("/nowhere"), **fields)


class TestWhen:
    def test_at_equal_shares_of_the_samples(self) -> None:
        due = {after: job().due(after - 8, after) for after in range(8, 65, 8)}
        assert {after: number for after, number in due.items() if number} == {16: 1, 32: 2, 48: 3, 64: 4}

    @pytest.mark.parametrize("batch", [1, 3, 5, 7, 16, 64])
    def test_every_run_ends_with_the_last_measurement_for_any_batch_size(self, batch: int) -> None:
        total = batch * 20
        numbers = [job(samples_total=total).due(at, at + batch) for at in range(0, total, batch)]
        assert [number for number in numbers if number] == [1, 2, 3, 4]

    def test_of_several_at_once_the_last(self) -> None:
        assert job(samples_total=64).due(0, 64) == 4

    def test_an_expert_continues_the_count_of_its_seed(self) -> None:
        after_seed = job(samples_before=32)
        assert [after_seed.due(at, at + 8) for at in range(0, 32, 8)] == [None, 3, None, 4]


class TestRecall:
    def test_of_pairs_that_find_each_other(self) -> None:
        assert recall_at_1(torch.eye(4), torch.eye(4), ["a", "b", "c", "d"]) == 1.0

    def test_it_is_the_mean_of_both_directions(self) -> None:
        images = torch.eye(3)
        texts = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
        # Text 1 finds image 0; image 1 finds text 1 all the same.
        assert recall_at_1(images, texts, ["a", "b", "c"]) == pytest.approx((1 + 2 / 3) / 2)

    def test_equal_captions_are_equally_right(self) -> None:
        images, texts = torch.eye(2)[[1, 0]], torch.eye(2)
        assert recall_at_1(images, texts, ["a", "b"]) == 0.0
        assert recall_at_1(images, texts, ["a", "a"]) == 1.0


class TestWhileTraining:
    @pytest.fixture
    def below(self, all_pairs: PairIndex) -> int:
        """A threshold that holds 12 of the 48 pairs out."""
        return sorted(int(value) for value in hashes(all_pairs))[12]

    @pytest.fixture
    def pairs(self, all_pairs: PairIndex, below: int, data_folder: Path, tmp_path: Path) -> Location:
        """Those pairs, in a file."""
        table = pq.read_table(data_folder / "b.parquet")
        rows = [row for row in range(24) if int(pair_hash(all_pairs.work_units[1].unit, np.array([row]))[0]) < below]
        pq.write_table(table.take(pa.array(rows)), tmp_path / "held_out.parquet")
        return Location.parse(str(tmp_path / "held_out.parquet"))

    def jobs(self, make_job: Callable[..., TrialJob], pairs: Location, below: int) -> list[TrialJob]:
        measure = MeasureJob(pairs=pairs, measurements=4, samples_before=0, samples_total=8 * BATCH)
        made = []
        for trial, before in ((SEED_TRIAL, 0), (EXPERT_TRIAL, 4 * BATCH)):
            members = replace(trial.members, held_out_below=below)
            one = make_job(replace(trial, members=members))
            made.append(replace(one, measure=replace(measure, samples_before=before)))
        return made

    def test_seed_and_expert_leave_their_curves_and_train_on_the_rest(
        self, make_job: Callable[..., TrialJob], pairs: Location, below: int, all_pairs: PairIndex
    ) -> None:
        seed, expert = self.jobs(make_job, pairs, below)
        assert fit_trial(seed) == fit_trial(expert) == TrialEnd()
        assert sorted(read_curve(seed.folder)) == [1, 2]
        assert sorted(read_curve(expert.folder)) == [3, 4]
        fine = all_pairs.column("fine")
        kept = hashes(all_pairs) >= below
        assert read_metrics(seed.folder)["pairs"] == kept.sum() == 36
        assert read_metrics(expert.folder)["pairs"] == (kept & (fine >= 2)).sum()

    def test_the_last_point_is_that_of_the_model_that_is_written(
        self, make_job: Callable[..., TrialJob], pairs: Location, below: int
    ) -> None:
        seed, _ = self.jobs(make_job, pairs, below)
        fit_trial(seed)
        clip = load_clip(seed.folder)
        table = pq.read_table(pairs.path)
        images = torch.stack([clip.eval_transform(decode_image(i, 10**6, "")) for i in table["image"].to_pylist()])
        captions = table["caption"].to_pylist()
        module = clip.module.eval()
        with torch.inference_mode():
            expected = recall_at_1(
                module.encode_image(images, normalize=True),  # type: ignore[operator]
                module.encode_text(clip.tokenizer(captions), normalize=True),  # type: ignore[operator]
                captions,
            )
        assert read_curve(seed.folder)[2] == pytest.approx(expected)

    def test_measuring_does_not_change_what_is_trained(
        self, make_job: Callable[..., TrialJob], pairs: Location, below: int
    ) -> None:
        seed, _ = self.jobs(make_job, pairs, below)
        fit_trial(seed)
        measured = load_clip(seed.folder).module.state_dict()
        seed.folder.delete()
        fit_trial(replace(seed, measure=None))
        plain = load_clip(seed.folder).module.state_dict()
        assert all(torch.equal(measured[name], plain[name]) for name in plain)


def hashes(index: PairIndex) -> np.ndarray:
    """The hash of every pair."""
    numbers, rows = index.column("shard"), index.column("row")
    return np.array(
        [
            int(pair_hash(index.work_units[number].unit, np.array([row]))[0])
            for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)
        ]
    )
