"""A sweep on the tiny run: what each trial is, what comes out, and that nothing is trained twice."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from terminal import require_words, shown_at_80_columns

from mode_ray.config.load import dump_config, load_config, with_values
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError, TrainingError, UsageError
from mode_ray.run_directory import MANIFEST
from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.stages.run import Run
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.sweep import run as sweep_run
from mode_ray.sweep.plan import SweepInputs, SweepTrial, plan_sweep, swept_expert
from mode_ray.sweep.results import (
    SweepReport,
    SweepResult,
    best_of,
    ranked,
    read_result,
    sweep_table,
    write_result,
    write_results,
)
from mode_ray.sweep.run import run_sweep
from mode_ray.sweep.trainable import Poll, measurements
from mode_ray.sweep.tuning import asha
from mode_ray.train.runs.launcher import TrialEnd
from mode_ray.train.runs.measure_job import read_curve
from mode_ray.train.runs.trial import TrialJob

RATE, BATCH, SHARE = "train.optimizer.learning_rate", "train.batch_size", "train.seed_share"


@pytest.fixture
def data_folder(data_folder: Path) -> Path:
    """The pairs with captions that tell no more than the colour, so that a trained model finds all of them."""
    tar, table = data_folder / "a.tar", pq.read_table(data_folder / "b.parquet")
    tar.write_bytes(re.sub(rb"square number \d+", lambda found: b"square".ljust(len(found[0])), tar.read_bytes()))
    captions = [text.partition(" number")[0] for text in table["caption"].to_pylist()]
    pq.write_table(table.set_column(1, "caption", [captions]), data_folder / "b.parquet", row_group_size=12)
    return data_folder


@pytest.fixture
def sweep_config(make_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Makes the tiny run's config with a sweep of these fields and options."""

    def make(fields: dict[str, Any], placement: dict[str, Any] | None = None, **options: Any) -> RunConfig:  # noqa: ANN401
        config = make_config(placement=placement or {})
        sweep = {"fields": fields, "held_out_pairs": 6, "measurements": 4, **options}
        return RunConfig.model_validate({**json.loads(config.model_dump_json()), "sweep": sweep})

    return make


@pytest.fixture
def inputs(run_folder: Location) -> SweepInputs:
    return SweepInputs(
        sweep=run_folder / "sweep",
        assignments=run_folder / "assignments",
        clusters=run_folder / "clusters",
        held_out=run_folder / "sweep" / "held_out.parquet",
        held_out_below=12345,
        pairs_n=np.array([24, 24]),
        expert=1,
        data_hash="data",
    )


@pytest.fixture
def assigned(run_folder: Location, work_units: list[WorkUnit]) -> Location:
    """The tiny run with its assign stage done."""
    records = [
        UnitRecord(unit=work_unit.unit, source=work_unit.uri, rows_in=24, rows_out=24) for work_unit in work_units
    ]
    Stage("assign", run_folder / "assignments", {}).finish(records, {})
    return run_folder


def sweep(config: RunConfig, work_units: list[WorkUnit]) -> tuple[SweepReport, list[str]]:
    said: list[str] = []
    return run_sweep(Run(config, work_units), said.append), said


class TestPlan:
    def test_a_trial_is_the_seed_and_the_expert_without_the_held_out_pairs(
        self, sweep_config: Callable[..., RunConfig], inputs: SweepInputs
    ) -> None:
        (trial,) = plan_sweep(sweep_config({RATE: [1e-3]}), [{RATE: 1e-3}], inputs)
        seed, expert = trial.jobs
        assert (seed.trial.name, expert.trial.name, expert.trial.parent) == ("seed", "n2/01", "seed")
        assert {job.trial.members.held_out_below for job in trial.jobs} == {12345}
        assert {job.config.train.optimizer.learning_rate for job in trial.jobs} == {1e-3}
        assert trial.samples == seed.trial.samples + expert.trial.samples
        assert seed.measure is not None
        assert expert.measure is not None
        assert (seed.measure.samples_before, expert.measure.samples_before) == (0, seed.trial.samples)
        assert expert.folder == inputs.sweep / trial.name / "n2/01"

    def test_the_dense_baseline_can_be_swept_even_if_the_run_trains_none(
        self, sweep_config: Callable[..., RunConfig], inputs: SweepInputs
    ) -> None:
        config = with_values(sweep_config({RATE: [1e-3]}), {"train.controls": []})
        (trial,) = plan_sweep(config, [{RATE: 1e-3}], replace(inputs, expert=None))
        assert [job.trial.name for job in trial.jobs] == ["dense"]

    def test_names_tell_all_that_decides_a_trial_and_nothing_else(
        self, sweep_config: Callable[..., RunConfig], inputs: SweepInputs
    ) -> None:
        def name(inputs: SweepInputs = inputs, rate: float = 1e-3, **options: Any) -> str:  # noqa: ANN401
            return plan_sweep(sweep_config({RATE: [1e-3]}, **options), [{RATE: rate}], inputs)[0].name

        same = {name(), name(trials=99), name(seed=5), name(placement={"concurrent_runs": 7})}
        assert len(same) == 1
        others = {
            name(rate=2e-3),
            name(measurements=8),
            name(replace(inputs, held_out_below=1)),
            name(replace(inputs, expert=0)),
            name(replace(inputs, data_hash="other")),
        }
        assert len(others | same) == 6

    def test_a_point_that_is_no_config_is_named_before_anything_is_trained(
        self, sweep_config: Callable[..., RunConfig], inputs: SweepInputs
    ) -> None:
        config = sweep_config({BATCH: [9]}, placement={"workers_per_run": 2})
        with pytest.raises(UsageError, match=r"train\.batch_size=9: .*not a multiple of 2"):
            plan_sweep(config, [{BATCH: 9}], inputs)

    def test_the_expert_is_the_widest_or_the_one_that_is_named(self, sweep_config: Callable[..., RunConfig]) -> None:
        assert swept_expert(sweep_config({}), 1) == 1
        assert swept_expert(sweep_config({}, model=0), 1) == 0
        assert swept_expert(sweep_config({}, model="dense"), 1) is None
        with pytest.raises(UsageError, match=r"sweep\.model=2: the experts are 0 to 1"):
            swept_expert(sweep_config({}, model=2), 1)


def result(name: str, state: str, *recalls: float) -> SweepResult:
    curve = dict(enumerate(recalls, start=1))
    return SweepResult(trial=name, point={RATE: 1e-3}, state=state, curve=curve, samples=64)  # type: ignore[arg-type]


class TestResults:
    def test_the_furthest_comes_first_then_the_best(self) -> None:
        results = [
            result("stopped", "stopped", 0.9),
            result("good", "finished", 0.1, 0.4),
            result("best", "finished", 0.1, 0.5),
            result("failed", "failed"),
        ]
        assert [one.trial for one in ranked(results)] == ["best", "good", "stopped", "failed"]
        best = best_of(results)
        assert best is not None
        assert best.trial == "best"

    def test_without_a_finished_trial_there_is_no_winner(self) -> None:
        assert best_of([result("stopped", "stopped", 0.9)]) is None

    def test_the_winner_is_a_config_with_all_other_fields_as_they_were(
        self, sweep_config: Callable[..., RunConfig], tmp_path: Path
    ) -> None:
        config = sweep_config({RATE: [1e-3, 2e-3], BATCH: [8, 16]})
        won = replace(result("best", "finished", 0.5), point={RATE: 2e-3, BATCH: 16})
        folder = Location.parse(str(tmp_path / "sweep"))
        write_results(folder, config, [won], {"metric": "recall_at_1"})
        best = load_config((folder / "best.yaml").uri)
        assert (best.train.optimizer.learning_rate, best.train.batch_size) == (2e-3, 16)
        assert with_values(best, {RATE: config.train.optimizer.learning_rate, BATCH: 8}) == config
        written = json.loads((folder / "results.json").read_text())
        assert (written["best"], written["metric"]) == ("best", "recall_at_1")
        assert written["trials"][0]["recall"] == 0.5

    def test_a_result_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        folder = Location.parse(str(tmp_path))
        assert read_result(folder) is None
        write_result(folder, result("one", "stopped", 0.25, 0.5))
        assert read_result(folder) == result("one", "stopped", 0.25, 0.5)

    def test_the_table_has_a_row_a_trial(self) -> None:
        table = sweep_table([result("a", "finished", 0.5), result("b", "failed")], 4)
        assert len(table.rows) == 2

    def test_the_table_fits_80_columns(self) -> None:
        point = {RATE: 2e-3, BATCH: 16384, "train.optimizer.weight_decay": 0.2, "train.augment.crop_share_low": 0.9}
        results = [replace(result("a1b2c3", state, 0.5), point=point) for state in ("finished", "stopped")]
        shown = shown_at_80_columns(sweep_table(results, 4))
        require_words(shown, [*(name.removeprefix("train.") for name in point), "recall@1", "a1b2c3", "finished"])


class TestOneTrial:
    @pytest.fixture
    def trial(self, sweep_config: Callable[..., RunConfig], inputs: SweepInputs) -> SweepTrial:
        return plan_sweep(sweep_config({RATE: [1e-3]}), [{RATE: 1e-3}], inputs)[0]

    def runs(self, trained: list[str], **ends: list[TrialEnd]) -> Callable[[TrialJob], Poll]:
        """Stands in for launches: each leaves two measurements, one a poll, and ends as told."""

        def begin(job: TrialJob) -> Poll:
            trained.append(job.trial.name)
            first = 1 if job.trial.name == "seed" else 3
            points = {first: first / 10, first + 1: first / 5}
            end = ends.get(job.trial.name.replace("/", ""), [TrialEnd()]).pop(0)
            polls = iter([list(points)[:1], list(points)])

            def poll() -> TrialEnd | None:
                numbers = next(polls, None)
                if numbers is not None:
                    (job.folder / "held_out.json").write_text(json.dumps({n: points[n] for n in numbers}))
                    return None
                if end.reason is None:
                    (job.folder / "open_clip_config.json").write_text("{}")
                return end

            return poll

        return begin

    def test_its_runs_follow_each_other_and_each_point_is_reported_once(self, trial: SweepTrial) -> None:
        trained: list[str] = []
        assert list(measurements(trial, self.runs(trained))) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.6)]
        assert trained == ["seed", "n2/01"]

    def test_points_are_reported_while_the_run_continues(self, trial: SweepTrial) -> None:
        told = measurements(trial, self.runs([]))
        assert next(told) == (1, 0.1)
        assert not (trial.jobs[0].folder / "open_clip_config.json").exists()

    def test_a_finished_trial_is_reported_again_but_not_trained_again(self, trial: SweepTrial) -> None:
        trained: list[str] = []
        told = list(measurements(trial, self.runs(trained)))
        assert list(measurements(trial, self.runs(trained))) == told
        assert trained == ["seed", "n2/01"]

    def test_a_trial_that_was_stopped_stays_stopped(self, trial: SweepTrial) -> None:
        trained: list[str] = []
        (trial.jobs[0].folder / "held_out.json").write_text('{"1": 0.1}')
        write_result(trial.folder, result(trial.name, "stopped", 0.1))
        assert list(measurements(trial, self.runs(trained))) == [(1, 0.1)]
        assert trained == []

    def test_a_lost_launcher_is_launched_again_and_a_failed_run_is_not(self, trial: SweepTrial) -> None:
        trained: list[str] = []
        ends = {"seed": [TrialEnd("lost", again=True), TrialEnd()], "n201": [TrialEnd("the loss is nan")]}
        with pytest.raises(TrainingError, match="the loss is nan"):
            list(measurements(trial, self.runs(trained, **ends)))
        assert trained == ["seed", "seed", "n2/01"]

    def test_one_that_waited_too_long_is_launched_on_demand_and_that_is_no_failure(self, trial: SweepTrial) -> None:
        selectors: list[dict[str, str]] = []
        begin = self.runs([], seed=[*(TrialEnd("no machine", waited=True) for _ in range(9)), TrialEnd()])

        def noted(job: TrialJob) -> Poll:
            selectors.append(job.config.train.placement.label_selector)
            return begin(job)

        list(measurements(trial, noted))
        on_demand = {"ray.io/market-type": "on-demand"}
        assert selectors == [{}, on_demand] * 5 + [{}], "the seed's ten launches, and the expert's first"

    def test_launches_are_bounded(self, trial: SweepTrial) -> None:
        trained: list[str] = []
        lost = [TrialEnd("lost", again=True) for _ in range(9)]
        with pytest.raises(TrainingError, match="lost"):
            list(measurements(trial, self.runs(trained, seed=lost)))
        assert trained == ["seed"] * trial.jobs[0].config.train.placement.max_launches


def test_trials_are_compared_at_measurements() -> None:
    scheduler = asha(8, 0.25, 2.0)
    rungs = sorted(milestone for milestone, _ in scheduler._brackets[0]._rungs)
    assert rungs == [2, 4, 8]
    assert sorted(m for m, _ in asha(4, 0.0, 3.0)._brackets[0]._rungs) == [1, 3]


@pytest.mark.usefixtures("assigned")
class TestRefusals:
    def test_a_sweep_of_nothing(self, sweep_config: Callable[..., RunConfig], work_units: list[WorkUnit]) -> None:
        with pytest.raises(UsageError, match=r"sweep\.fields is empty"):
            sweep(sweep_config({}), work_units)

    def test_before_the_pairs_are_assigned(
        self, sweep_config: Callable[..., RunConfig], work_units: list[WorkUnit], run_folder: Location
    ) -> None:
        (run_folder / "assignments" / MANIFEST).delete()
        with pytest.raises(UsageError, match="the assign stage, which is not done"):
            sweep(sweep_config({RATE: [1e-3]}), work_units)

    def test_too_small_a_training_set(
        self, sweep_config: Callable[..., RunConfig], work_units: list[WorkUnit]
    ) -> None:
        config = sweep_config({RATE: [1e-3]}, held_out_pairs=13)
        with pytest.raises(DataError, match="has 24 pairs: too few to hold out 13"):
            sweep_run._prepare(Run(config, work_units), 1, "data")

    def test_a_held_out_image_that_cannot_be_decoded(
        self, sweep_config: Callable[..., RunConfig], work_units: list[WorkUnit], data_folder: Path
    ) -> None:
        for file in data_folder.iterdir():
            file.write_bytes(file.read_bytes().replace(b"\x89PNG", b"\0\0\0\0"))
        with pytest.raises(
            DataError, match=r"6 of 6 held-out images cannot be decoded, more than limits\.max_bad_image_share"
        ):
            sweep_run._prepare(Run(sweep_config({RATE: [1e-3]}), work_units), 1, "data")


@pytest.mark.drill
@pytest.mark.usefixtures("ray_session", "assigned")
class TestOnRay:
    """Real trials under Tune: about a minute with runs in the trials' own processes."""

    def test_a_sweep_finds_the_better_rate_stops_the_others_and_resumes(
        self,
        sweep_config: Callable[..., RunConfig],
        work_units: list[WorkUnit],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        fields = {RATE: [1e-2, 3e-3, 1e-9, 1e-8]}
        config = sweep_config(fields, placement={"concurrent_runs": 2}, trials=4, grace_share=0.5)
        config = with_values(config, {"train.dense_samples": 2048, "train.seed": 1})
        report, said = sweep(config, work_units)
        assert len(report.results) == 4
        states = {float(one.point[RATE]): one.state for one in report.results}
        assert {states[1e-9], states[1e-8]} == {"stopped"}
        assert "finished" in states.values()
        best = load_config((report.folder / "best.yaml").uri)
        assert best.train.optimizer.learning_rate in (1e-2, 3e-3)
        assert dump_config(with_values(best, {RATE: config.train.optimizer.learning_rate})) == dump_config(config)
        for one in report.results:
            folder = report.folder / one.trial
            assert read_result(folder) == one
            told = read_curve(folder / "seed") | read_curve(folder / "n2/01")
            assert one.curve == told
            assert len(told) == 4 if one.state == "finished" else len(told) >= 2
        assert sum("recall@1" in line for line in said) >= 8
        assert not (report.folder / "tune").exists()

        monkeypatch.setattr(sweep_run, "_train_all", lambda *_: pytest.fail("trained again"))
        again, said = sweep(config, work_units)
        assert again.results == report.results
        assert "4 of them ended before" in said[0]

    def test_a_trial_that_fails_is_reported_and_tried_again_the_next_time(
        self,
        sweep_config: Callable[..., RunConfig],
        work_units: list[WorkUnit],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A rate that makes the loss not finite at once."""
        config = sweep_config({RATE: [1e-3, 1e30]}, model="dense", reduction_factor=4.0)
        report, said = sweep(config, work_units)
        failed = [one for one in report.results if one.state == "failed"]
        assert [one.point[RATE] for one in failed] == [1e30]
        assert failed[0].reason is not None
        assert "the loss is" in failed[0].reason
        assert any("failed: dense: the loss is" in line for line in said)
        best = load_config((report.folder / "best.yaml").uri)
        assert best.train.optimizer.learning_rate == 1e-3

        monkeypatch.setattr(sweep_run, "_train_all", lambda _, trials, *__: tried.append(trials) or {})  # type: ignore[func-returns-value]
        tried: list[Any] = []
        _, said = sweep(config, work_units)
        assert "1 of them ended before" in said[0]
        assert len(tried) == 1
