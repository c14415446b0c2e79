"""What a launch asks Ray for, and what it does with what an earlier one left."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trials import SEED_TRIAL

from mode_ray.config.train import TrainPlacement
from mode_ray.storage import Location
from mode_ray.train.runs.launcher import _delete_torn_snapshot, checkpoints_folder, scaling_config
from mode_ray.train.runs.trial import TrialJob


def asked(**placement: Any) -> Any:  # noqa: ANN401
    return scaling_config(TrainPlacement.model_validate(placement))


def test_neither_launchers_nor_rays_controllers_import_torch() -> None:
    code = (
        "import sys, mode_ray.train.runs.launcher, ray.train.v2._internal.execution.controller; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestWhatARunAsksFor:
    def test_a_fixed_number_of_workers(self) -> None:
        scaling = asked(workers_per_run=4, cpus_per_worker=3.0)
        assert (scaling.num_workers, scaling.elasticity_enabled) == (4, False)
        assert scaling.resources_per_worker == {"CPU": 3.0}
        assert (scaling.use_gpu, scaling.accelerator_type, scaling.label_selector) == (False, None, None)

    def test_an_elastic_run_grows_up_to_its_maximum(self) -> None:
        scaling = asked(workers_per_run=1, max_workers_per_run=4, resize_interval_seconds=20.0)
        assert scaling.num_workers == (1, 4)
        assert scaling.elastic_resize_monitor_interval_s == 20.0

    def test_fractions_of_gpus_of_one_kind_on_nodes_with_labels(self) -> None:
        labels = {"ray.io/market-type": "spot"}
        scaling = asked(use_gpu=True, gpus_per_worker=0.5, accelerator_type="A100", label_selector=labels)
        assert scaling.resources_per_worker == {"CPU": 1.0, "GPU": 0.5}
        assert scaling._resources_per_worker_not_none["accelerator_type:A100"] > 0
        assert scaling._label_selector_per_worker(2) == [labels, labels]

    def test_a_run_in_the_launchers_process_has_no_gpu_and_cannot_grow(self) -> None:
        with pytest.raises(ValueError, match="use_gpu needs workers_per_run above 0"):
            TrainPlacement(workers_per_run=0, use_gpu=True)
        with pytest.raises(ValueError, match="max_workers_per_run needs workers_per_run above 0"):
            asked(workers_per_run=0, max_workers_per_run=2)


class TestOnDemand:
    def test_the_market_is_added_to_the_labels(self) -> None:
        spot = {"mode-ray/pool": "gpu", "ray.io/market-type": "spot"}
        placement = TrainPlacement(label_selector=spot, on_demand_after_seconds=600.0)
        assert placement.on_demand.label_selector == {"mode-ray/pool": "gpu", "ray.io/market-type": "on-demand"}
        assert placement.label_selector == spot

    def test_the_checkpoints_are_the_same(self, make_job: Callable[..., TrialJob]) -> None:
        job = make_job(SEED_TRIAL)
        assert checkpoints_folder(job.on_demand) == checkpoints_folder(job)

    def test_a_limit_without_effect_is_refused(self) -> None:
        with pytest.raises(ValueError, match="never waits"):
            TrainPlacement(on_demand_after_seconds=600.0, workers_per_run=0)
        with pytest.raises(ValueError, match=r"no effect, because label_selector has .*: on-demand"):
            TrainPlacement(on_demand_after_seconds=600.0, label_selector={"ray.io/market-type": "on-demand"})


class TestRaysNoteOfCheckpoints:
    @pytest.fixture
    def note(self, tmp_path: Path) -> Path:
        return tmp_path / "checkpoint_manager_snapshot.json"

    def test_a_torn_one_is_deleted_for_ray_would_not_begin_with_it(self, note: Path) -> None:
        whole = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint-1"}]})
        for torn in ("", whole[: len(whole) // 2]):
            note.write_text(torn)
            _delete_torn_snapshot(Location(str(note.parent)))
            assert not note.exists()

    def test_a_whole_one_stays_and_none_is_needed(self, note: Path) -> None:
        _delete_torn_snapshot(Location(str(note.parent)))
        note.write_text("{}")
        _delete_torn_snapshot(Location(str(note.parent)))
        assert note.read_text() == "{}"
