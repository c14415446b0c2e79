"""What `mode-ray doctor` calls a failure, and the fix that it names."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mode_ray.deploy.findings import (
    INDEX_BYTES_PER_PAIR,
    check_bucket,
    check_clock,
    check_disk,
    check_gpus,
    check_memory,
    check_pods,
    check_versions,
)
from mode_ray.deploy.machine import MachineFacts, machine_facts, wheel_cuda
from mode_ray.pairs.index import index_columns
from mode_ray.storage import Location

GIB = 2**30
MACHINE = MachineFacts(
    host="a",
    python="3.11.7",
    ray="2.60.0",
    mode_ray="0.1.0",
    wheel_cuda="13.0",
    driver="580.65.06",
    gpus=4,
    memory_bytes=192 * GIB,
    limit_bytes=168 * GIB,
    shared_memory_bytes=52 * GIB,
    temporary_free_bytes=100 * GIB,
    unix_seconds=0.0,
)


def test_the_facts_of_this_machine_are_read_without_a_gpu() -> None:
    facts = machine_facts()
    assert facts.memory_bytes > GIB
    assert facts.shared_memory_bytes > 0
    assert (facts.driver is None) == (facts.gpus == 0)


def test_the_cuda_version_of_torch_is_read_from_its_file() -> None:
    import torch

    assert wheel_cuda() == torch.version.cuda


class TestGpus:
    def states(self, expected: float = 4.0, **facts: Any) -> dict[str, str]:  # noqa: ANN401
        return {found.check: found.state for found in check_gpus(replace(MACHINE, **facts), expected)}

    def test_a_driver_that_is_new_enough(self) -> None:
        assert self.states() == {"GPUs": "ok", "driver": "ok"}

    @pytest.mark.parametrize(("cuda", "driver"), [("13.0", "570.86.15"), ("12.8", "470.57.02")])
    def test_a_driver_too_old_for_the_cuda_of_torch(self, cuda: str, driver: str) -> None:
        assert self.states(wheel_cuda=cuda, driver=driver)["driver"] == "failed"

    def test_a_cpu_build_of_torch_on_a_gpu_machine(self) -> None:
        assert self.states(wheel_cuda=None)["driver"] == "failed"

    def test_gpus_that_the_container_does_not_see(self) -> None:
        assert self.states(gpus=2)["GPUs"] == "failed"
        assert self.states(driver=None, gpus=0) == {"GPUs": "failed"}

    def test_a_machine_without_gpus(self) -> None:
        assert self.states(expected=0.0, driver=None, gpus=0) == {"GPUs": "ok"}


class TestMemory:
    def states(self, **facts: int | None) -> dict[str, str]:
        return {found.check: found.state for found in check_memory(replace(MACHINE, **facts))}  # type: ignore[arg-type]

    def test_a_pod_that_fits(self) -> None:
        assert self.states() == {"memory": "ok", "shared memory": "ok"}

    def test_a_limit_above_the_machines_memory(self) -> None:
        assert self.states(limit_bytes=200 * GIB)["memory"] == "failed"

    def test_the_64_mib_that_docker_gives(self) -> None:
        assert self.states(shared_memory_bytes=64 * 2**20)["shared memory"] == "failed"


def test_versions_that_differ_are_listed() -> None:
    found = {one.check: one for one in check_versions([MACHINE, MACHINE, replace(MACHINE, python="3.12.1")])}
    assert found["python version"].state == "failed"
    assert found["python version"].found == "3.11.7 (2), 3.12.1 (1)"
    assert found["ray version"].state == "ok"


def test_an_index_larger_than_the_disk() -> None:
    assert sum(field.type.byte_width for field in index_columns(tars=True)) == INDEX_BYTES_PER_PAIR
    assert check_disk(MACHINE, 2_900_000_000).state == "ok"
    assert check_disk(MACHINE, 3_000_000_000).state == "failed"
    assert check_disk(MACHINE, None).state == "unknown"


@pytest.mark.parametrize(("offset", "state"), [(0.2, "ok"), (-7.0, "failed"), (90.0, "failed")])
def test_a_clock(offset: float, state: str) -> None:
    assert check_clock(offset).state == state


class TestBucket:
    def test_all_rights_leave_no_file(self, bucket: str) -> None:
        directory = Location.parse(f"{bucket}/run")
        assert check_bucket(directory, "probe").state == "ok"
        assert not directory.files()

    @pytest.mark.usefixtures("s3_server")
    def test_a_bucket_that_does_not_exist(self) -> None:
        found = check_bucket(Location.parse("s3://mode-ray-absent/run"), "probe")
        assert found.state == "failed"
        assert "give this machine's identity the right to write" in found.fix

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert check_bucket(Location(str(tmp_path / "file/run")), "probe").state == "failed"


class TestPods:
    NODES: Mapping[str, Any] = {
        "items": [{"status": {"allocatable": {"cpu": "47810m", "memory": "186650000Ki", "nvidia.com/gpu": "4"}}}]
    }

    def pending(self, memory: str, cpu: str = "46") -> dict[str, Any]:
        resources = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"nvidia.com/gpu": "4"}}
        return {
            "items": [
                {
                    "metadata": {"name": "gpu-1"},
                    "spec": {"containers": [{"resources": resources}]},
                    "status": {"phase": "Pending"},
                },
                {"metadata": {"name": "head"}, "spec": {"containers": []}, "status": {"phase": "Running"}},
            ]
        }

    def test_a_pod_above_what_the_machine_can_allocate_is_found(self) -> None:
        (found,) = check_pods(self.pending("180Gi"), self.NODES)
        assert (found.state, found.found) == ("failed", "gpu-1: 46 CPUs, 180 GiB fit on no node")

    def test_one_that_fits_waits_for_room(self) -> None:
        assert check_pods(self.pending("168Gi"), self.NODES)[0].state == "ok"

    def test_without_pending_pods_there_is_nothing_to_say(self) -> None:
        assert check_pods({"items": []}, self.NODES)[0].found == "no pod is pending"
