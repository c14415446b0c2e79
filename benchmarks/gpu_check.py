"""Check in eight minutes, without a network, whether a machine with one GPU is fit for mode_ray.

    python benchmarks/gpu_check.py                       # on a machine with a GPU
    python benchmarks/gpu_check.py --device cpu --quick  # every check small, on any machine

Each check runs in a process of its own with a deadline, so that a hang or a crash ends this check only. Each prints
one JSON line, and the last line is the verdict. Ray is not needed. docs/gpus.md explains how to read the lines.

A check passes if all of its marks hold. Speed is judged on CUDA only: on a CPU, a check whose marks are all about
speed runs, but its status is `skipped: needs CUDA`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from frame import machine
from gpu_check_frame import Context, Marks
from gpu_check_inference import check_embedder, check_experts, check_fit, check_search
from gpu_check_machine import check_devices, check_machine
from gpu_check_training import (
    check_loader,
    check_loop,
    check_resume,
    check_train_speed,
    check_two_processes,
)

from mode_ray.errors import UsageError
from mode_ray.util.devices import pick_device
from mode_ray.util.versions import package_versions

TOTAL_SECONDS = 480.0
_CPU_PATIENCE = 3.0  # deadlines are for one GPU; on a CPU nothing is judged by its speed
_MOST_TRACE_LINES = 12


@dataclass(frozen=True)
class Check:
    """A check and its deadline."""

    run: Callable[[Context, Marks], None]
    seconds: float


# Correctness first.
CHECKS: Mapping[str, Check] = {
    "machine": Check(check_machine, 40),
    "devices": Check(check_devices, 40),
    "loop": Check(check_loop, 120),
    "resume": Check(check_resume, 40),
    "two_processes": Check(check_two_processes, 60),
    "search": Check(check_search, 60),
    "fit": Check(check_fit, 60),
    "embedder": Check(check_embedder, 60),
    "experts": Check(check_experts, 40),
    "loader": Check(check_loader, 60),
    "train_speed": Check(check_train_speed, 120),
}


def run_here(name: str, context: Context) -> dict[str, Any]:
    """Run one check in this process."""
    if context.device.type == "cpu":
        torch.set_num_threads(1)  # several threads of OpenMP wait for each other if the cores are shared
    began, marks = time.monotonic(), Marks(judges_speed=context.device.type == "cuda")
    try:
        CHECKS[name].run(context, marks)
        status = marks.status
    except Exception:  # noqa: BLE001  (any failure of a check is its result)
        status = "error"
        marks.failures.append("\n".join(traceback.format_exc().splitlines()[-_MOST_TRACE_LINES:]))
    seconds = round(time.monotonic() - began, 1)
    return {
        "check": name,
        "status": status,
        "seconds": seconds,
        "figures": marks.figures,
        "failures": marks.failures,
    }


def run_apart(name: str, options: argparse.Namespace, deadline_seconds: float) -> dict[str, Any]:
    """Run one check in a process of its own, and end it with all its children at the deadline."""
    if deadline_seconds <= 1.0:
        return _without_result(name, "not run: out of time", 0.0)
    began = time.monotonic()
    command = [sys.executable, __file__, "--device", options.device, "--run", name, *["--quick"] * options.quick]
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        process = subprocess.Popen(
            [*command, "--result", str(result)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, errors = process.communicate(timeout=deadline_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return _without_result(name, f"timeout: {deadline_seconds:.0f} s", time.monotonic() - began)
        if result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
            return found
    lines = errors.splitlines()[-_MOST_TRACE_LINES:]
    status = f"crash: exit status {process.returncode}"
    return _without_result(name, status, time.monotonic() - began) | {"failures": ["\n".join(lines)]}


def _without_result(name: str, status: str, seconds: float) -> dict[str, Any]:
    return {"check": name, "status": status, "seconds": round(seconds, 1), "figures": {}, "failures": []}


def verdict(lines: list[dict[str, Any]], device: torch.device, seconds: float) -> dict[str, Any]:
    """The last line: `pass` on CUDA if every check passed; on a CPU, at most `no GPU checked`."""
    statuses = {line["check"]: line["status"] for line in lines}
    failed = [name for name, status in statuses.items() if status != "pass" and not status.startswith("skipped")]
    skipped = [name for name, status in statuses.items() if status.startswith("skipped")]
    good = "pass" if device.type == "cuda" else "no GPU checked"
    return {
        "verdict": "fail" if failed else good,
        "failed": failed,
        "skipped": skipped,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": machine(),
        "versions": package_versions(),
    }


def main() -> int:
    """Run the checks; returns the exit status: 0 if none failed, 2 for a device that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, …, or cpu")
    parser.add_argument("--quick", action="store_true", help="every check small")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--run", choices=list(CHECKS), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        device = pick_device(options.device)
    except UsageError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    if options.run:
        with tempfile.TemporaryDirectory() as scratch:
            options.result.write_text(json.dumps(run_here(options.run, Context(device, options.quick, Path(scratch)))))
        return 0
    began, lines = time.monotonic(), []
    patience = 1.0 if device.type == "cuda" else _CPU_PATIENCE
    for name in options.only or CHECKS:
        left = patience * TOTAL_SECONDS - (time.monotonic() - began)
        lines.append(run_apart(name, options, min(patience * CHECKS[name].seconds, left)))
        print(json.dumps(lines[-1]), flush=True)
    last = verdict(lines, device, time.monotonic() - began)
    print(json.dumps(last), flush=True)
    return 1 if last["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
