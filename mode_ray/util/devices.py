"""The torch device of a process: what Ray granted to it or, without Ray, what the caller asks for.

A GPU that was granted or asked for, and cannot be used, is an error that gives the reason. Work never falls back to
the CPU. `auto` without a granted GPU is the CPU: since Ray 2.60, a task with `num_gpus=0` still sees all GPUs of its
node.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mode_ray.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch

AUTO = "auto"
_HIDDEN = ("", "-1", "NoDevFiles")
# The first driver of each major version of CUDA (NVIDIA's CUDA Toolkit release notes, table 3).
_FIRST_DRIVER = {11: "R450", 12: "R525", 13: "R580"}


@dataclass(frozen=True)
class CudaState:
    """What decides whether a process can use CUDA.

    Attributes:
        torch_version: Version of torch.
        wheel: CUDA version that torch was built for, for example `13.0`; None for a build without CUDA.
        driver: Newest CUDA version that the NVIDIA driver supports; None without a driver.
        visible: CUDA_VISIBLE_DEVICES, if it is set.
        gpus: Number of GPUs that torch finds.
        error: Message of a failed start of CUDA.
    """

    torch_version: str
    wheel: str | None
    driver: str | None
    visible: str | None = None
    gpus: int = 0
    error: str = ""

    @property
    def problem(self) -> str | None:
        """Why no GPU can be used, in one clause with the fix; None if GPUs can be used."""
        if self.wheel is None:
            return f"torch {self.torch_version} is a build without CUDA: install the build for CUDA"
        return self._driver_problem(int(self.wheel.split(".")[0])) or self._gpu_problem()

    def _driver_problem(self, needed: int) -> str | None:
        """Why the driver does not support a major version of CUDA."""
        if self.driver is None:
            return (
                "there is no NVIDIA driver: this machine has no GPU, or its container was started without one "
                "(`docker run --gpus all`; on Kubernetes request nvidia.com/gpu)"
            )
        found = int(self.driver.split(".")[0])
        if found < needed:
            first = _FIRST_DRIVER.get(needed, "newer")
            return (
                f"the NVIDIA driver is too old: it supports CUDA {self.driver}, but torch {self.torch_version} needs "
                f"CUDA {needed}: install driver {first} or newer, or a build of torch for CUDA {found}"
            )
        return None

    def _gpu_problem(self) -> str | None:
        """Why no GPU can be used although the driver supports torch."""
        if self.visible in _HIDDEN:
            return f"CUDA_VISIBLE_DEVICES={self.visible!r} hides all GPUs: unset it"
        if self.error:
            return f"CUDA does not start ({self.error})"
        if not self.gpus:
            return "the NVIDIA driver finds no GPU in this machine or container: see the output of `nvidia-smi`"
        return None


def cuda_state() -> CudaState:
    """The state of this process. CUDA is started if torch finds a GPU."""
    import torch

    state = CudaState(torch.__version__, torch.version.cuda, _driver(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if state.problem is not None and (state.wheel is None or state.driver is None or state.visible in _HIDDEN):
        return state
    gpus, error = 0, ""
    try:
        gpus = torch.cuda.device_count()
        if gpus:
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as failure:
        error = str(failure).splitlines()[0]
    return CudaState(state.torch_version, state.wheel, state.driver, state.visible, gpus, error)


def granted_gpus() -> int | None:
    """How many GPUs, or parts of GPUs, Ray granted to this task or actor; None in a process that is neither."""
    context = _context_of_worker()
    return None if context is None else len(context.get_accelerator_ids()["GPU"])


def granted_cpus() -> float:
    """How many logical CPUs Ray granted to this task or actor; 0 in a process that is neither."""
    context = _context_of_worker()
    return 0.0 if context is None else float(context.get_assigned_resources().get("CPU", 0.0))


def _context_of_worker() -> Any:  # noqa: ANN401  (Ray's type must not be imported)
    ray: Any = sys.modules.get("ray")  # a process that has not imported Ray is no worker of it
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context if context.worker.mode == ray.WORKER_MODE else None


def pick_device(
    name: str,
    granted: Callable[[], int | None] = granted_gpus,
    cuda: Callable[[], CudaState] = cuda_state,
) -> "torch.device":
    """The device that a name means in this process.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, …. `auto` in a task or actor of Ray is CUDA if Ray granted a GPU, else
            the CPU; in other processes it is CUDA if a GPU can be used, else the CPU.
        granted: As `granted_gpus`.
        cuda: As `cuda_state`.

    Raises:
        UsageError: torch has no such device, Ray granted no GPU for it, or CUDA cannot be used; the message says why.
    """
    import torch

    gpus = granted()
    if name == AUTO:
        if gpus is None:
            return torch.device("cpu" if cuda().problem else "cuda")
        if gpus:
            require_cuda("Ray granted a GPU to this process", cuda)
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device={name!r}: {first_line(error)}") from None
    if gpus == 0:
        raise UsageError(
            f"device={name!r}: Ray granted no GPU to this process: set the GPUs of its pool or task in the config "
            "(gpus_per_actor, gpus_per_task, gpus_per_expert), or use device=auto"
        )
    state = require_cuda(f"device={name!r}", cuda)
    if device.index is not None and device.index >= state.gpus:
        raise UsageError(f"device={name!r}: this process has {state.gpus} GPUs, numbered from 0")
    return device


def require_cuda(asked: str, cuda: Callable[[], CudaState] = cuda_state) -> CudaState:
    """Check that CUDA can be used.

    Args:
        asked: Who asks for it, for the message.
        cuda: As `cuda_state`.

    Raises:
        UsageError: It cannot be used; the message says why.
    """
    state = cuda()
    if state.problem is not None:
        raise UsageError(f"{asked}: {state.problem}")
    return state


def _driver() -> str | None:
    """The newest CUDA version that the driver supports, asked without starting CUDA."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
