"""Checks of gpu_check.py: the machine, and which device a process takes."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import torch
from gpu_check_frame import Context, Marks

from mode_ray.errors import UsageError
from mode_ray.util.devices import cuda_state, pick_device

_H200_TERAFLOPS = 600.0
_SIZE = 8_192
_ASK = """
from mode_ray.errors import UsageError
from mode_ray.util.devices import pick_device
try:
    print(pick_device("{name}"))
except UsageError as error:
    print(error)
"""


def check_machine(context: Context, marks: Marks) -> None:
    """Driver, compiler, speed of products in bfloat16, and of copies from pinned memory."""
    state = cuda_state()
    marks.note("torch", state.torch_version)
    marks.note("cuda_of_driver", state.driver)
    marks.note("gcc", shutil.which("gcc") or shutil.which("cc"))
    marks.note("cores", len(os.sched_getaffinity(0)))
    shm = os.statvfs("/dev/shm")  # noqa: S108
    marks.note("shm_bytes", shm.f_frsize * shm.f_blocks)
    if not context.on_cuda:
        return
    marks.holds("has_gcc", marks.figures["gcc"] is not None, "no C compiler: torch.compile (Triton) needs gcc")
    properties = torch.cuda.get_device_properties(context.device)
    marks.note("gpu", properties.name)
    marks.note("gpu_bytes", properties.total_memory)
    left = torch.randn(_SIZE, _SIZE, device=context.device, dtype=torch.bfloat16)
    seconds = context.seconds(lambda: left @ left, 20)
    teraflops = 2.0 * _SIZE**3 / seconds / 1e12
    if "H200" in properties.name:
        marks.at_least("bf16_teraflops", teraflops, _H200_TERAFLOPS, speed=True)
    else:
        marks.note("bf16_teraflops", teraflops)
    pinned = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    seconds = context.seconds(lambda: pinned.to(context.device, non_blocking=True), 10)
    marks.note("pinned_copy_gb_per_second", len(pinned) / seconds / 1e9)


def check_devices(context: Context, marks: Marks) -> None:
    """The device follows from the grant; a GPU that cannot be used is an error with the reason."""
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    marks.holds("auto_hidden_is_cpu", _answer("auto", hidden) == "cpu", "auto with hidden GPUs is not the CPU")
    refused = _answer("cuda", hidden)
    marks.note("hidden", refused)
    marks.holds("hidden_is_refused", refused.startswith("device='cuda': "), f"hidden GPUs are not refused: {refused}")
    marks.holds("no_grant_is_cpu", pick_device("auto", lambda: 0).type == "cpu", "auto without a grant is not the CPU")
    old = replace(cuda_state(), wheel="13.0", driver="12.4", gpus=0)
    try:
        pick_device("auto", lambda: 1, lambda: old)
        reason = ""
    except UsageError as error:
        reason = str(error)
    marks.holds("old_driver_is_refused", "R580" in reason, f"an old driver is not refused: {reason!r}")
    if context.on_cuda:
        shown = _answer("auto", dict(os.environ))
        marks.holds("auto_shown_is_cuda", shown == "cuda", f"auto with a GPU is {shown}")
        granted = pick_device("auto", lambda: 1).type
        marks.holds("a_grant_is_cuda", granted == "cuda", f"auto with a granted GPU is {granted}")


def _answer(name: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", _ASK.format(name=name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()
