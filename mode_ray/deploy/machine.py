"""Facts about the machine that a process runs on, read without importing Ray or torch."""

import contextlib
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_QUERY_SECONDS = 20.0
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the mount itself
# Both versions of control groups; a limit near 2^63 means none.
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class MachineFacts:
    """What `doctor` compares.

    Attributes:
        host: Name of the machine or pod.
        python: Version of Python.
        ray: Version of Ray.
        mode_ray: Version of mode_ray.
        wheel_cuda: Version of CUDA that torch is built for; None for a CPU build.
        driver: Version of the NVIDIA driver; None without one.
        gpus: GPUs that this container sees.
        memory_bytes: Memory of the machine.
        limit_bytes: Memory limit of the container; None without one.
        shared_memory_bytes: Size of /dev/shm.
        temporary_free_bytes: Free bytes where temporary files are written.
        unix_seconds: This machine's clock.
    """

    host: str
    python: str
    ray: str
    mode_ray: str
    wheel_cuda: str | None
    driver: str | None
    gpus: int
    memory_bytes: int
    limit_bytes: int | None
    shared_memory_bytes: int
    temporary_free_bytes: int
    unix_seconds: float


def machine_facts() -> MachineFacts:
    """The facts of this machine."""
    drivers = _nvidia_smi("driver_version")
    shared = Path(_SHARED_MEMORY)
    return MachineFacts(
        host=socket.gethostname(),
        python=platform.python_version(),
        ray=_version("ray"),
        mode_ray=_version("mode_ray"),
        wheel_cuda=wheel_cuda(),
        driver=drivers[0] if drivers else None,
        gpus=len(drivers),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        limit_bytes=_memory_limit(),
        shared_memory_bytes=shutil.disk_usage(shared).total if shared.is_dir() else 0,
        temporary_free_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
        unix_seconds=time.time(),
    )


def wheel_cuda() -> str | None:
    """The version of CUDA that the installed torch is built for, from its version file."""
    try:
        file = metadata.distribution("torch").locate_file("torch/version.py")
        text = Path(str(file)).read_text()
    except (metadata.PackageNotFoundError, OSError):
        return None
    found = re.search(r"^cuda\b.*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _nvidia_smi(field: str) -> list[str]:
    """A field of every visible GPU; empty without the driver's tool, or where it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        ended = subprocess.run(
            [tool, f"--query-gpu={field}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_QUERY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return []
    return ended.stdout.split() if ended.returncode == 0 else []


def _memory_limit() -> int | None:
    for name in _LIMIT_FILES:
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(name).read_text())
            return limit if limit < 1 << 60 else None
    return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
