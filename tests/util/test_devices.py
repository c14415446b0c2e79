"""Which device a process takes, with the grants of Ray and the state of CUDA passed in."""

import re
from dataclasses import replace

import pytest
import ray

from mode_ray.errors import UsageError
from mode_ray.util.devices import CudaState, cuda_state, granted_cpus, granted_gpus, pick_device, require_cuda
from mode_ray.util.ray_tasks import task_result

GOOD = CudaState("2.14.1+cu130", wheel="13.0", driver="13.1", gpus=2)
BROKEN = {
    "CPU wheel": (replace(GOOD, torch_version="2.14.1+cpu", wheel=None), "torch 2.14.1.cpu is a build without CUDA"),
    "no driver": (replace(GOOD, driver=None, gpus=0), "no NVIDIA driver: .*docker run --gpus all"),
    "old driver": (replace(GOOD, driver="12.4", gpus=0), "driver is too old: it supports CUDA 12.4, .*driver R580"),
    "hidden": (replace(GOOD, visible="", gpus=0), "CUDA_VISIBLE_DEVICES='' hides all GPUs"),
    "broken": (replace(GOOD, error="system not yet initialized"), "does not start .system not yet initialized"),
    "no GPU": (replace(GOOD, gpus=0), "finds no GPU"),
}


def device(name: str, granted: int | None, cuda: CudaState = GOOD) -> str:
    return str(pick_device(name, granted=lambda: granted, cuda=lambda: cuda))


@pytest.mark.parametrize(
    ("name", "granted", "expected"),
    [
        ("auto", 0, "cpu"),  # Ray does not hide the GPUs from a task without any
        ("auto", 1, "cuda"),
        ("auto", None, "cuda"),
        ("cpu", 1, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", None, "cuda:1"),
    ],
)
def test_the_device_follows_from_the_grant(name: str, granted: int | None, expected: str) -> None:
    assert device(name, granted) == expected


@pytest.mark.parametrize(("state", "reason"), BROKEN.values(), ids=BROKEN)
class TestUnusable:
    def test_a_granted_gpu_is_an_error_with_the_reason(self, state: CudaState, reason: str) -> None:
        with pytest.raises(UsageError, match=f"^Ray granted a GPU to this process: .*{reason}"):
            device("auto", 1, state)

    def test_a_named_gpu_is_an_error_with_the_reason(self, state: CudaState, reason: str) -> None:
        with pytest.raises(UsageError, match=f"^device='cuda': .*{reason}"):
            device("cuda", None, state)
        with pytest.raises(UsageError, match=f"^train.placement.use_gpu: .*{reason}"):
            require_cuda("train.placement.use_gpu", lambda: state)

    def test_auto_without_a_grant_is_the_cpu(self, state: CudaState, reason: str) -> None:
        assert state.problem is not None, reason
        assert device("auto", None, state) == device("auto", 0, state) == "cpu"


@pytest.mark.parametrize(
    ("name", "granted", "said"),
    [
        ("cuda", 0, "Ray granted no GPU to this process: .*gpus_per_actor"),
        ("cuda:2", None, "this process has 2 GPUs"),
        ("abacus", None, "abacus"),
    ],
)
def test_a_device_that_the_process_does_not_have(name: str, granted: int | None, said: str) -> None:
    with pytest.raises(UsageError, match=f"^device='{name}': .*{said}"):
        device(name, granted)


def test_without_a_need_for_cuda_its_state_is_not_asked() -> None:
    def asked() -> CudaState:
        raise AssertionError("asked")

    assert str(pick_device("auto", lambda: 0, asked)) == str(pick_device("cpu", lambda: 1, asked)) == "cpu"


@pytest.mark.usefixtures("ray_session")
class TestInRay:
    """In a session with one GPU that Ray can grant; whether it can be used depends on the machine."""

    def test_a_task_knows_what_ray_granted_it_and_the_driver_is_no_task(self) -> None:
        granted = ray.remote(granted_gpus)
        assert [ray.get(granted.options(num_gpus=gpus).remote()) for gpus in (0, 0.5, 1)] == [0, 1, 1]
        assert granted_gpus() is None
        granted_to_task = ray.remote(granted_cpus)
        assert [ray.get(granted_to_task.options(num_cpus=cpus).remote()) for cpus in (0, 0.5, 1)] == [0.0, 0.5, 1.0]
        assert granted_cpus() == 0.0

    def test_auto_follows_the_grant_and_an_unusable_gpu_ends_the_task_with_the_reason(self) -> None:
        picked = ray.remote(lambda: str(pick_device("auto")))
        assert task_result(picked.remote()) == "cpu"
        problem = cuda_state().problem
        with_gpu = picked.options(num_gpus=1).remote()
        if problem is None:
            assert task_result(with_gpu) == "cuda"
        else:
            with pytest.raises(UsageError, match=f"^Ray granted a GPU to this process: {re.escape(problem)}$"):
                task_result(with_gpu)


def test_the_state_of_this_machine_agrees_with_torch() -> None:
    import torch

    state = cuda_state()
    assert (state.problem is None) == torch.cuda.is_available()
    assert state.wheel == torch.version.cuda
