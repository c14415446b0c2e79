"""Drains this machine's Ray node when the cloud announces that it takes the spot machine back.

Ray then calls the loss a preemption: training writes a checkpoint, and the loss is not counted as a failure. Without a
drain, Ray sees a node that crashed. It runs beside Ray on every worker machine:

    python -m mode_ray.deploy.spot_watcher --cloud aws      # or gcp; until Ray ends on this machine
    python -m mode_ray.deploy.spot_watcher --drain-now      # preStop of a Kubernetes pod

The standard library suffices: the watcher stays small, and Ray is only imported by `ray drain-node`.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# An EC2 notice comes two minutes before the end; a machine of Compute Engine gets 30 seconds.
EC2_POLL_SECONDS, GCE_POLL_SECONDS = 5.0, 1.0
GCE_NOTICE_SECONDS = 30.0
# The time between the deadline that Ray is given and the end of the machine.
_MARGIN_SECONDS = 5.0
_START_SECONDS = 120.0
_REQUEST_SECONDS = 2.0
_METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
_MAX_ANSWER_BYTES = 4096


@dataclass(frozen=True)
class RayNode:
    """A Ray node whose raylet runs on this machine."""

    process: int
    node_id: str
    gcs_address: str


@dataclass(frozen=True)
class Notice:
    """The announcement of the machine's end."""

    remaining_seconds: float


def ec2_notice(endpoint: str, now: Callable[[], float] = time.time) -> Notice | None:
    """The notice of EC2's instance metadata service (version 2), or None.

    Raises:
        OSError: The service does not answer.
    """
    token = _answer(f"{endpoint}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    try:
        text = _answer(f"{endpoint}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice
            return None
        raise
    at = datetime.strptime(json.loads(text)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return Notice(at.timestamp() - now())


def gce_notice(endpoint: str) -> Notice | None:
    """The notice of Compute Engine's metadata server, or None.

    Raises:
        OSError: The server does not answer.
    """
    text = _answer(f"{endpoint}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return Notice(GCE_NOTICE_SECONDS) if text.strip() == "TRUE" else None


def local_ray_nodes(processes: Path = Path("/proc")) -> list[RayNode]:
    """The Ray nodes of this machine, by the command lines of their raylets."""
    nodes = []
    for folder in processes.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or is another user's
            continue
        if Path(words[0]).name != "raylet":
            continue
        options = dict(word.lstrip("-").replace("-", "_").split("=", 1) for word in words if "=" in word)
        if "node_id" in options and "gcs_address" in options:
            nodes.append(RayNode(int(folder.name), options["node_id"], options["gcs_address"]))
    return nodes


def drain(node: RayNode, remaining_seconds: float, reason: str) -> None:
    """Ask Ray to drain a node before its end.

    Raises:
        OSError: Ray refused, or did not answer.
    """
    seconds = max(1, int(remaining_seconds - _MARGIN_SECONDS))
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "drain-node"]
    options = {
        "address": node.gcs_address,
        "node-id": node.node_id,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": reason,
        "deadline-remaining-seconds": str(seconds),
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    ended = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or ["no reason given"]
        raise OSError(f"ray drain-node failed: {lines[-1]}")


def watch(
    find_notice: Callable[[], Notice | None],
    find_nodes: Callable[[], Sequence[RayNode]],
    poll_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Poll for a notice, and drain the nodes when it comes; returns when they are drained or Ray has ended.

    Returns:
        The number of nodes that were drained.
    """
    waited, seen = 0.0, False
    while True:
        nodes = find_nodes()
        if not nodes and (seen or waited > _START_SECONDS):
            _say("Ray does not run on this machine")
            return 0
        seen = seen or bool(nodes)
        try:
            notice = find_notice()
            if notice is not None and nodes:
                for node in nodes:
                    drain(node, notice.remaining_seconds, "the cloud takes this spot machine back")
                    _say(f"drained {node.node_id}: {notice.remaining_seconds:.0f} s until the machine ends")
                return len(nodes)
        except (OSError, ValueError, KeyError) as error:
            _say(f"will try again: {error}")
        sleep(poll_seconds)
        waited += poll_seconds


def drain_now(find_nodes: Callable[[], Sequence[RayNode]], remaining_seconds: float) -> None:
    """Drain the nodes, and wait for their end; at most until the deadline that Ray is given."""
    deadline = time.monotonic() + remaining_seconds - _MARGIN_SECONDS
    for node in find_nodes():
        drain(node, remaining_seconds, "the pod is stopped")
    while find_nodes() and time.monotonic() < deadline:
        time.sleep(0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the watcher, or drain at once; returns the exit code."""
    parser = argparse.ArgumentParser(prog="spot_watcher", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cloud", choices=tuple(_METADATA), help="whose notices to poll")
    parser.add_argument("--endpoint", help="URL of the metadata server (default: the cloud's)")
    parser.add_argument("--drain-now", action="store_true", help="drain without a notice, and wait")
    parser.add_argument("--seconds", type=float, default=25.0, help="with --drain-now: until the machine ends")
    parser.add_argument("--node-id", help="watch only this Ray node (default: every node of this machine)")
    options = parser.parse_args(arguments)
    if options.drain_now == bool(options.cloud):
        parser.error("give either --cloud or --drain-now")

    def find_nodes() -> list[RayNode]:
        return [node for node in local_ray_nodes() if options.node_id in (None, node.node_id)]

    if options.drain_now:
        try:
            drain_now(find_nodes, options.seconds)
        except OSError as error:
            _say(str(error))
            return 1
        return 0
    endpoint = (options.endpoint or _METADATA[options.cloud]).rstrip("/")
    if options.cloud == "aws":
        watch(lambda: ec2_notice(endpoint), find_nodes, EC2_POLL_SECONDS)
    else:
        watch(lambda: gce_notice(endpoint), find_nodes, GCE_POLL_SECONDS)
    return 0


def _answer(url: str, headers: dict[str, str], method: str = "GET") -> str:
    # The addresses are fixed, or the operator's own.
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as answer:  # noqa: S310
        text: bytes = answer.read(_MAX_ANSWER_BYTES)
    return text.decode()


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} spot_watcher: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
