"""Which machines Ray's own scheduler (autoscaler v2) starts for the pools of aws.yaml and the work of run-aws.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest  # type: ignore[attr-defined]
from ray.core.generated.common_pb2 import LabelSelectorOperator  # type: ignore[attr-defined]
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent  # type: ignore[attr-defined]

from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.config.train import TrainPlacement
from mode_ray.deploy.render import read_values, render_all

VALUES = str(Path(__file__).resolve().parents[2] / "cluster_configs/values.yaml")
CPU_MACHINES = 40
Request = Any  # a message of protobuf, which has no types


class Scheduler:
    """Ray's scheduler with the node types of aws.yaml, and its memory of types that did not come in time."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = AutoscalingConfig(dict(config), skip_content_hash=True)
        self.monitor = CloudResourceMonitor()

    def happened(self, node_type: str, status: int) -> None:
        """Note a change of a machine, as the instance manager does."""
        self.monitor.notify([InstanceUpdateEvent(instance_type=node_type, new_instance_status=status)])

    def launched(self, *gangs: list[Request], single: list[Request] | None = None) -> dict[str, int]:
        """How many machines of each type are started for placement groups, and for single tasks and actors."""
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=self.config.get_node_type_configs(),
            max_num_nodes=self.config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(single or []),
            gang_resource_requests=[GangResourceRequest(requests=gang) for gang in gangs],
            cloud_resource_availabilities=self.monitor.get_resource_availabilities(),
            recoverable_resource_availabilities=self.monitor.get_recoverable_resource_availabilities(),
        )
        reply = ResourceDemandScheduler().schedule(request)
        assert not reply.infeasible_gang_resource_requests
        return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return render_all(read_values(VALUES))


@pytest.fixture(scope="module")
def run(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    file = tmp_path_factory.mktemp("run") / "run.yaml"
    file.write_text(files["run-aws.yaml"])
    return load_config(str(file))


@pytest.fixture
def scheduler(files: dict[str, str]) -> Scheduler:
    return Scheduler(yaml.safe_load(files["aws.yaml"]))


def requested(resources: dict[str, float], labels: Mapping[str, str]) -> Request:
    equals = LabelSelectorOperator.LABEL_OPERATOR_IN
    selector = [(key, equals, [value]) for key, value in labels.items()]
    return ResourceRequestUtil.make(resources, label_selectors=[selector] if selector else None)


def workers_of(placement: TrainPlacement) -> list[Request]:
    """The placement group of one training run."""
    resources = {"CPU": placement.cpus_per_worker, "GPU": placement.gpus_per_worker}
    return [requested(resources, placement.label_selector)] * placement.workers_per_run


class TestMachinesOfExperts:
    def test_spot_machines_come_first(self, scheduler: Scheduler, run: RunConfig) -> None:
        workers = workers_of(run.train.placement)
        assert scheduler.launched(workers) == {"gpu_spot": 1}
        assert scheduler.launched(*[workers] * run.train.placement.concurrent_runs) == {"gpu_spot": 4}

    def test_after_a_timeout_the_on_demand_type_is_next(self, scheduler: Scheduler, run: RunConfig) -> None:
        scheduler.happened("gpu_spot", Instance.ALLOCATION_TIMEOUT)
        assert scheduler.launched(workers_of(run.train.placement)) == {"gpu_on_demand": 1}

    def test_a_spot_machine_that_runs_again_ends_that(self, scheduler: Scheduler, run: RunConfig) -> None:
        scheduler.happened("gpu_spot", Instance.ALLOCATION_TIMEOUT)
        scheduler.happened("gpu_spot", Instance.RAY_RUNNING)
        assert scheduler.launched(workers_of(run.train.placement)) == {"gpu_spot": 1}

    def test_a_refusal_changes_nothing_so_our_scheduler_names_the_market(
        self, scheduler: Scheduler, run: RunConfig
    ) -> None:
        for _ in range(3):
            scheduler.happened("gpu_spot", Instance.ALLOCATION_FAILED)
        assert scheduler.launched(workers_of(run.train.placement)) == {"gpu_spot": 1}
        assert scheduler.launched(workers_of(run.train.placement.on_demand)) == {"gpu_on_demand": 1}

    def test_more_runs_than_spot_machines_use_both_pools(self, scheduler: Scheduler, run: RunConfig) -> None:
        most = run.train.placement.concurrent_runs
        launched = scheduler.launched(*[workers_of(run.train.placement)] * (most + 2))
        assert launched == {"gpu_spot": most, "gpu_on_demand": 2}


class TestMachinesOfActors:
    @pytest.mark.parametrize("stage", ["embed", "assign"])
    def test_a_full_pool_fills_the_cpu_machines_and_no_others(
        self, scheduler: Scheduler, run: RunConfig, stage: str
    ) -> None:
        pool = getattr(run, stage).pool
        actors = [requested({"CPU": pool.cpus_per_actor}, pool.label_selector)] * pool.max_actors
        assert scheduler.launched(single=actors) == {"cpu_spot": CPU_MACHINES}

    def test_more_actors_than_cpus_wait_instead_of_starting_gpu_machines(
        self, scheduler: Scheduler, run: RunConfig
    ) -> None:
        pool = run.assign.pool
        actors = [requested({"CPU": pool.cpus_per_actor}, pool.label_selector)] * (pool.max_actors + 40)
        assert scheduler.launched(single=actors) == {"cpu_spot": CPU_MACHINES}
        without = [requested({"CPU": pool.cpus_per_actor}, {})] * (pool.max_actors + 40)
        assert "gpu_spot" in scheduler.launched(single=without), "the label is what keeps them off"
