"""Before its trainer starts, a launcher writes the training set, copied by Ray's actors where that is asked for."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import ray

from mode_ray.config.train import TrainPlacement
from mode_ray.errors import DataError
from mode_ray.pairs.members import TrainingSet
from mode_ray.pairs.reader import PairReader
from mode_ray.pairs.training_set import SetFiles, open_training_set, write_training_set
from mode_ray.stages.journal import finished_units
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.plan import Trial
from mode_ray.train.runs.launcher import TrialEnd, fit_trial
from mode_ray.train.runs.prepare import on_cluster, prepare_training_set, readers
from mode_ray.train.runs.trial import TrialJob, read_metrics
from mode_ray.train.runs.trial_data import TrialData
from mode_ray.train.runs.waiting import MachinesMissingError

BATCH = 8
DENSE = Trial(name="dense", members=TrainingSet(kind="all", seed=1), samples=8 * BATCH)
SEED = Trial(name="seed", members=TrainingSet(kind="all", seed=0), samples=8 * BATCH)
EXPERT = Trial(
    name="n2/01",
    members=TrainingSet(kind="expert", experts=2, expert=1, out_of_cluster_share=0.25),
    samples=2 * BATCH,
)
GROUP_M = np.array([0, 0, 1, 1], np.int32)
MATERIALISED = {"mode": "materialised", "pairs_per_shard": 20}


def contents(job: TrialJob) -> Counter[tuple[bytes, str]]:
    data = TrialData(job)
    index = data.open()
    return Counter((p.image, p.caption) for p in PairReader(index, data.captions).read(np.arange(len(index))))


class TestIndexMode:
    def test_seed_and_dense_run_share_a_file(self, make_job: Callable[..., TrialJob]) -> None:
        for trial in (SEED, DENSE):
            prepare_training_set(make_job(trial))
        files = (make_job(SEED).experts / "training_sets").files(recursive=True)
        assert [file.name for file in files] == ["all.arrow"]
        assert sum(contents(make_job(SEED)).values()) == 48

    def test_an_expert_gets_its_own_and_some_others(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(EXPERT)
        prepare_training_set(job)
        colours = Counter(caption.split()[1] for _, caption in contents(job))
        assert colours["blue"] + colours["yellow"] == 24
        assert colours["red"] + colours["green"] == 8

    def test_a_set_without_pairs_ends_the_launch_with_the_reason(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(Trial(name="n2/02", members=TrainingSet(kind="expert", experts=2, expert=2), samples=BATCH))
        end = fit_trial(job)
        assert end == TrialEnd("expert 2 of 2 has no pairs; lower train.experts or add more captions")

    def test_a_worker_without_its_launcher_says_what_is_missing(self, make_job: Callable[..., TrialJob]) -> None:
        with pytest.raises(DataError, match=r"all\.arrow: missing; run `mode-ray train` again"):
            TrialData(make_job(DENSE)).open()


@pytest.mark.usefixtures("ray_session")
class TestPartsOnTheCluster:
    PLACEMENT = TrainPlacement(cpus_per_worker=1.0)

    def test_ray_tasks_write_the_parts_of_an_index(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(EXPERT)
        prepare_training_set(job)
        whole = TrialData(job).open()
        files = SetFiles(EXPERT.members, job.assignments, job.experts / "shards.parquet", GROUP_M, units_per_part=1)
        folder = job.experts / "in_parts"
        write_training_set(files, folder, partial(on_cluster, self.PLACEMENT))
        assert len([file for file in folder.files(recursive=True) if file.name.endswith(".arrow")]) > 1
        index = open_training_set(files, folder)
        assert index.dtype == whole.dtype
        assert all(np.array_equal(index.column(name), whole.column(name)) for name in index.dtype.names or ())

    def test_without_a_machine_for_them_the_launch_ends_after_the_limit(self) -> None:
        placement = TrainPlacement(label_selector={"mode-ray/pool": "absent"}, on_demand_after_seconds=0.2)
        with pytest.raises(MachinesMissingError, match=r"no machine for its workers within 0\.2 s"):
            on_cluster(placement, len, [range(1), range(1, 2)])

    def test_the_sentence_of_a_task_is_raised(self) -> None:
        def fail(part: range) -> None:
            raise DataError(f"{part.start}.parquet: damaged")

        with pytest.raises(DataError, match=r"^0\.parquet: damaged$"):
            on_cluster(self.PLACEMENT, fail, [range(1), range(1, 2)])


@pytest.mark.usefixtures("ray_session")
class TestMaterialisedMode:
    def test_both_modes_hold_the_same_samples(
        self, make_job: Callable[..., TrialJob], work_units: list[WorkUnit]
    ) -> None:
        prepare_training_set(make_job(EXPERT))
        job = make_job(EXPERT, data=MATERIALISED)
        prepare_training_set(job)
        assert contents(job) == contents(make_job(EXPERT))
        assert not {work_unit.uri for work_unit in TrialData(job).open().work_units} & {
            work_unit.uri for work_unit in work_units
        }

    @pytest.mark.drill
    def test_launchers_who_want_the_same_set_make_it_once_and_train_on_it(
        self, make_job: Callable[..., TrialJob]
    ) -> None:
        jobs = [make_job(trial, data=MATERIALISED) for trial in (SEED, DENSE)]
        prepare: Any = ray.remote(prepare_training_set).options(num_cpus=0)
        ray.get([prepare.remote(job) for job in jobs])
        folder = TrialData(jobs[0]).materialised().folder
        records = finished_units(folder)
        assert len(records) == 3  # 48 pairs, 20 at most in each
        assert len({record.attempt for record in records.values()}) == 1
        tars = {file.name: file.read_bytes() for file in folder.files()}
        assert fit_trial(jobs[1]) == TrialEnd()
        assert read_metrics(jobs[1].folder)["pairs"] == 48
        assert {file.name: file.read_bytes() for file in folder.files()} == tars

    def test_a_source_that_is_gone_ends_the_launch_with_its_name(
        self,
        make_job: Callable[..., TrialJob],
        data_folder: Any,  # noqa: ANN401
    ) -> None:
        job = make_job(DENSE, data=MATERIALISED)
        (Location(str(data_folder)) / "a.tar").delete()
        end = fit_trial(job)
        assert end.reason is not None
        assert "a.tar: no such file" in end.reason
        assert not end.again


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1),
        ({"workers_per_run": 0}, 1),
        ({"workers_per_run": 4, "loader_workers": 3}, 12),
        ({"workers_per_run": 2, "max_workers_per_run": 6, "loader_workers": 1}, 6),
    ],
)
def test_there_are_as_many_tars_as_may_be_read_at_once(fields: dict[str, Any], expected: int) -> None:
    assert readers(TrainPlacement(**fields)) == expected
