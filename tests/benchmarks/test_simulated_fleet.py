"""The fleet of the benchmark: machines are lost, and the real decisions still see every unit and every run done."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mode_ray.config.train import TrainConfig
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.train.plan import plan_trials

FLEET = Path(__file__).resolve().parents[2] / "benchmarks" / "simulated_fleet.py"


@pytest.fixture(scope="module")
def fleet() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulated_fleet", FLEET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_lost_machines_cost_time_and_no_units(fleet: ModuleType) -> None:
    work_units = [WorkUnit(unit=f"u{number}", uri=f"/u{number}", format="webdataset") for number in range(20_000)]
    arrived: Counter[str] = Counter()
    run = fleet.ShardStageRun(
        fleet.tasks_of(work_units, 8),
        3,
        600.0,
        lambda task: arrived.update(work_unit.unit for work_unit in task.work_units),
    )
    run.run()
    assert run.spot.losses > 5
    assert arrived == Counter(work_unit.unit for work_unit in work_units)
    assert 0.9 < run.utilisation < 1.0


def test_training_uses_the_budgets_of_the_product(fleet: ModuleType, tmp_path: Path) -> None:
    def states(**placement: float) -> Counter[str]:
        values = {"workers_per_run": 16, "concurrent_runs": 16, "use_gpu": True, **placement}
        config = TrainConfig.model_validate(
            {"experts": 4, "dense_samples": 3_000_000_000, "batch_size": 32_768, "controls": [], "placement": values}
        )
        trials = plan_trials(config, np.full(4, 10_000_000, dtype=np.int64), range(4))
        run = fleet.TrainingRun(config, trials, Location(str(tmp_path)), fleet.Bookkeeping())
        states = Counter(status.state for status in run.run().values())
        assert run.spot.losses > (100 if set(states) == {"finished"} else 0)
        return states

    assert states(max_failures=3) == {"finished": 5}
    assert states(max_failures=0)["failed"] >= 1
    assert states(max_failures=3, checkpoint_interval_seconds=1e6)["failed"] >= 1, "no loss leaves progress"


def test_events_come_in_the_order_of_their_times(fleet: ModuleType) -> None:
    clock, seen = fleet.EventClock(), list[float]()
    for seconds in (5.0, 1.0, 3.0):
        clock.after(seconds, lambda: seen.append(clock.now))
    for _ in range(3):
        clock.step()
    assert seen == [1.0, 3.0, 5.0]
