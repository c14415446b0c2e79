"""What a pipeline tells its metrics: the stages are stand-ins, what passes their events on is the pipeline's own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mode_ray.config.run import RunConfig
from mode_ray.observe.progress import Progress
from mode_ray.pipeline import STAGES, Pipeline, build_stages, open_run
from mode_ray.run_directory import OPTIONAL_STAGES, STAGE_NAMES
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord
from mode_ray.stages.run import Quiet, Run, StageReport
from mode_ray.storage import Location
from mode_ray.train.runs.status import TrialStatus

RUN = TrialStatus(trial="n2/00", state="running", samples=8)
FIT = {"iteration": 1, "inertia": 12.5, "max_over_mean": 1.2, "imbalance_factor": 1.0, "empty_clusters": 0}
Unit = Callable[[UnitRecord], None]

ALWAYS = [name for name in STAGE_NAMES if name not in OPTIONAL_STAGES]


class Recorded:
    """Stands in for the metrics: the calls that each of its hooks gets, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, hook: str) -> Callable[..., None]:
        return lambda *given: self.calls.append((hook, *given))

    def of(self, hook: str) -> list[tuple[object, ...]]:
        return [tuple(given) for name, *given in self.calls if name == hook]


def record(name: str) -> UnitRecord:
    return UnitRecord(unit=f"unit of {name}", source="a.parquet", rows_in=1, rows_out=1)


def finished(run: Run, stage: Stage, report: StageReport) -> Manifest:
    stage.begin(1)
    report.unit(record(stage.name))
    return stage.finish([record(stage.name)], {})


def cluster(run: Run, stage: Stage, report: StageReport) -> Manifest:
    report.iteration(FIT, 20)
    return finished(run, stage, report)


def train(run: Run, stage: Stage, report: StageReport) -> Manifest:
    with report.watching_trials() as on_change:
        on_change({RUN.trial: RUN})
    return finished(run, stage, Quiet())


def evaluate(run: Run, stage: Stage, report: StageReport) -> Manifest:
    report.routing({"pets": 0.5})
    return finished(run, stage, report)


class WithoutAtlas(Pipeline):
    """The stand-ins need nothing of the config, and leave nothing to make an atlas of."""

    def check(self, names: Sequence[str]) -> None:
        pass

    def make_atlas(self) -> Location:
        return Location("/no/atlas")


@pytest.fixture(params=[False, True], ids=["plain lines", "live table"])
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Recorded:
    """What was told of a run of all stages."""
    table = pa.table({"caption": ["a cat"], "image": pa.array([b"no matter"], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    config = RunConfig.model_validate(
        {
            "run": str(tmp_path / "run"),
            "captions": {"paths": [str(tmp_path / "a.parquet")]},
            "cluster": {"fine": {"centers": 8}, "coarse": {"experts": [2]}},
            "train": {"dense_samples": 1, "experts": 2},
        }
    )
    recorded = Recorded()
    stand_ins = {"embed": finished, "cluster": cluster, "assign": finished, "train": train, "evaluate": evaluate}
    entries = {name: replace(STAGES[name], run=stand_in) for name, stand_in in stand_ins.items()}
    run, progress = open_run(config), Progress(Console(quiet=True, force_terminal=request.param))
    progress.follow(config.run, observe=lambda: recorded)
    WithoutAtlas(run, build_stages(run), progress, entries).run(STAGE_NAMES)
    return recorded


def test_every_stage_begins_and_ends(told: Recorded) -> None:
    assert [stage for stage, *_ in told.of("begin")] == ALWAYS
    assert [manifest.stage for (manifest,) in told.of("end") if isinstance(manifest, Manifest)] == ALWAYS


def test_units_of_every_stage_but_training_are_told(told: Recorded) -> None:
    assert told.of("unit") == [(record(stage),) for stage in ALWAYS if stage != "train"]


def test_iterations_of_the_fit_are_told(told: Recorded) -> None:
    assert told.of("iteration") == [(FIT,)]


def test_statuses_of_training_runs_are_told(told: Recorded) -> None:
    assert told.of("trials") == [({RUN.trial: RUN},)]


def test_the_entropy_of_every_tasks_routing_is_told_under_the_runs_own_rule(told: Recorded) -> None:
    assert told.of("routing") == [({"pets": 0.5},)]
