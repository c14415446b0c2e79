"""The judgement of `mode-ray doctor`: facts of machines to findings, each failure with its fix in a sentence."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mode_ray.deploy.machine import MachineFacts
from mode_ray.storage import Location

State = Literal["ok", "failed", "unknown"]
# CUDA's minor version compatibility: the oldest driver of each major version.
_OLDEST_DRIVERS = {"11": 450, "12": 525, "13": 580}
_CLOCK_SECONDS = 5.0
# Ray's object store takes 30 % of a machine's memory; with less in /dev/shm it falls back to a slow disk.
_SHARED_MEMORY_SHARE = 0.3
INDEX_BYTES_PER_PAIR = 36  # in tars; 12 in parquet files
_GIB = 2**30
_PROBE = b"mode-ray doctor"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: What was checked.
        state: The outcome; `unknown` if it cannot be checked here.
        found: What was found.
        fix: How to fix a failure, in one sentence.
    """

    check: str
    state: State
    found: str
    fix: str = ""


def check_versions(machines: Sequence[MachineFacts]) -> list[Finding]:
    """Whether Python, Ray and mode_ray have the same versions on all machines."""
    findings = []
    for name in ("python", "ray", "mode_ray"):
        counts = Counter(str(getattr(machine, name)) for machine in machines)
        found = ", ".join(f"{version} ({count})" for version, count in counts.most_common())
        if len(counts) > 1:
            fix = f"install the same version of {name} on all nodes: use one image for the head and the workers"
            findings.append(Finding(f"{name} version", "failed", found, fix))
        else:
            findings.append(Finding(f"{name} version", "ok", next(iter(counts))))
    return findings


def check_gpus(machine: MachineFacts, expected_gpus: float) -> list[Finding]:
    """Whether the container sees the machine's GPUs, and whether the driver runs the CUDA version of torch.

    Args:
        machine: The machine.
        expected_gpus: GPUs that Ray counts on it; 0 where nothing is known.
    """
    if machine.driver is None:
        if expected_gpus:
            fix = "start the container with `--gpus all`, or install NVIDIA's device plugin and container toolkit"
            return [Finding("GPUs", "failed", f"Ray counts {expected_gpus:g}, nvidia-smi finds none", fix)]
        return [Finding("GPUs", "ok", "none")]
    findings = []
    if machine.gpus < expected_gpus:
        fix = "pass all GPUs to the container, or start Ray with the number of GPUs that it sees"
        findings.append(Finding("GPUs", "failed", f"Ray counts {expected_gpus:g}, visible: {machine.gpus}", fix))
    else:
        findings.append(Finding("GPUs", "ok", f"{machine.gpus} visible"))
    if machine.wheel_cuda is None:
        fix = "install torch's CUDA build: use the GPU image (--build-arg VARIANT=gpu)"
        findings.append(Finding("driver", "failed", f"driver {machine.driver}, but torch is a CPU build", fix))
        return findings
    oldest = _OLDEST_DRIVERS.get(machine.wheel_cuda.split(".")[0])
    found = f"driver {machine.driver}, torch for CUDA {machine.wheel_cuda}"
    if oldest is None:
        findings.append(Finding("driver", "unknown", found))
    elif int(machine.driver.split(".")[0]) < oldest:
        fix = f"choose a machine image with driver {oldest} or newer, or install torch for an older CUDA"
        findings.append(Finding("driver", "failed", found, fix))
    else:
        findings.append(Finding("driver", "ok", found))
    return findings


def check_memory(machine: MachineFacts) -> list[Finding]:
    """Whether the container's limit fits into the machine, and /dev/shm is large enough for Ray's object store."""
    limit = machine.limit_bytes or machine.memory_bytes
    findings = [Finding("memory", "ok", f"{limit / _GIB:.0f} GiB of the machine's {machine.memory_bytes / _GIB:.0f}")]
    if limit > machine.memory_bytes:
        fix = "lower the pod's memory below what the machine type can allocate"
        findings = [Finding("memory", "failed", f"limit {limit / _GIB:.0f} GiB, machine has less", fix)]
    shared, wanted = machine.shared_memory_bytes, _SHARED_MEMORY_SHARE * limit
    # A twentieth less is no fault: sizes are rounded, and the kernel takes a part.
    if shared < 0.95 * min(wanted, 0.5 * machine.memory_bytes):
        fix = f"give the container {wanted / _GIB:.0f} GiB of /dev/shm (docker: --shm-size; the chart: sharedMemoryGi)"
        findings.append(Finding("shared memory", "failed", f"{shared / _GIB:.1f} GiB", fix))
    else:
        findings.append(Finding("shared memory", "ok", f"{shared / _GIB:.1f} GiB"))
    return findings


def check_disk(machine: MachineFacts, pairs: int | None) -> Finding:
    """Whether the index of a training set over all pairs fits on the machine's disk."""
    free = machine.temporary_free_bytes
    if pairs is None:
        return Finding("disk", "unknown", f"{free / _GIB:.0f} GiB free; the number of pairs is not known yet")
    needed = pairs * INDEX_BYTES_PER_PAIR
    found = f"{free / _GIB:.0f} GiB free, index of {pairs:,} pairs: {needed / _GIB:.1f} GiB"
    if free < needed:
        return Finding("disk", "failed", found, "use a larger disk, or set TMPDIR to a folder on one")
    return Finding("disk", "ok", found)


def check_clock(offset_seconds: float) -> Finding:
    """Whether a machine's clock agrees with this one's."""
    found = f"{offset_seconds:+.1f} s against this machine"
    if abs(offset_seconds) > _CLOCK_SECONDS:
        return Finding("clock", "failed", found, "let the machine synchronise its clock (chrony or ntp)")
    return Finding("clock", "ok", found)


def check_bucket(directory: Location, probe: str) -> Finding:
    """Whether a directory can be written, read, listed and deleted in, by a probe file of this name."""
    file = directory / probe

    def listed() -> bool:
        return any(found.name == probe for found in directory.files())

    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("write", lambda: file.write_bytes(_PROBE)),
        ("read", lambda: file.read_bytes() == _PROBE),
        ("list", listed),
        ("delete", file.delete),
    )
    refused, reason = [], ""
    for name, step in steps:
        try:
            if step() is False:
                raise OSError("another content was found")
        except OSError as error:
            refused.append(name)
            reason = reason or " ".join(str(error).split())[:120]
            if name == "write":
                refused += ["read", "delete"]  # there is nothing to read
                break
    if refused:
        fix = f"give this machine's identity the right to {', '.join(refused)} below {directory} ({reason})"
        return Finding("bucket", "failed", f"{directory}: no {', '.join(refused)}", fix)
    return Finding("bucket", "ok", f"{directory}: list, read, write, delete")


def check_pods(pods: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[Finding]:
    """Whether every pending pod fits on some node of a Kubernetes cluster.

    Args:
        pods: `kubectl get pods --output json`.
        nodes: `kubectl get nodes --output json`.
    """
    rooms = [node["status"]["allocatable"] for node in nodes["items"]]
    findings = []
    for pod in pods["items"]:
        if pod["status"].get("phase") != "Pending" or pod["spec"].get("nodeName"):
            continue
        wanted = _requests(pod)
        name = pod["metadata"]["name"]
        if any(all(_quantity(room.get(kind, "0")) >= amount for kind, amount in wanted.items()) for room in rooms):
            findings.append(Finding("pod size", "ok", f"{name}: waits for room, fits on a node"))
        else:
            asked = f"{wanted.get('cpu', 0):g} CPUs, {wanted.get('memory', 0) / _GIB:.0f} GiB"
            fix = (
                "lower the pool's cpus and memoryGi below what its machines can allocate, unless the pool has no "
                "machine yet"
            )
            findings.append(Finding("pod size", "failed", f"{name}: {asked} fit on no node", fix))
    return findings or [Finding("pod size", "ok", "no pod is pending")]


def _requests(pod: Mapping[str, Any]) -> dict[str, float]:
    """What the containers of a pod request together."""
    total: dict[str, float] = {}
    for container in pod["spec"]["containers"]:
        resources = container.get("resources", {})
        for kind, amount in {**resources.get("limits", {}), **resources.get("requests", {})}.items():
            total[kind] = total.get(kind, 0.0) + _quantity(amount)
    return total


_UNITS = {
    "m": 1e-3,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
}


def _quantity(text: str) -> float:
    """A quantity of Kubernetes as a number."""
    unit = next((unit for unit in sorted(_UNITS, key=len, reverse=True) if str(text).endswith(unit)), "")
    return float(str(text).removesuffix(unit)) * _UNITS.get(unit, 1.0)
