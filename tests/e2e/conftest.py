"""Killing a process that a test started, with everything it started itself, and nothing else."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

KillTree = Callable[["subprocess.Popen[bytes]", float], list[str]]
PoolWorkers = Callable[["subprocess.Popen[bytes]"], list[int]]
NamedBelow = Callable[["subprocess.Popen[bytes]", str], list[int]]


class _Process(NamedTuple):
    pid: int
    parent: int
    started_ticks: int
    name: str


def _processes() -> dict[int, _Process]:
    """All processes of this machine by pid, without those that have ended and only wait for their parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        # The name stands in brackets and may hold blanks and brackets itself.
        head, _, tail = text.rpartition(")")
        fields = tail.split()
        if fields[0] != "Z":
            pid, parent, started = int(entry.name), int(fields[1]), int(fields[19])
            found[pid] = _Process(pid, parent, started, head.partition("(")[2])
    return found


def _below(pid: int) -> list[_Process]:
    """The descendants of a process."""
    children: dict[int, list[_Process]] = {}
    for process in _processes().values():
        children.setdefault(process.parent, []).append(process)
    found, parents = [], [pid]
    while parents:
        young = children.get(parents.pop(), [])
        found += young
        parents += [process.pid for process in young]
    return found


def _still_there(family: list[_Process]) -> list[_Process]:
    """Those that live; a pid that went to another process meanwhile does not count."""
    now = _processes()
    return [
        process for process in family if process.pid in now and now[process.pid].started_ticks == process.started_ticks
    ]


@pytest.fixture(scope="session")
def kill_tree() -> KillTree:
    """SIGKILL for a process; its descendants get some seconds to notice, and what outlives it is killed by pid.

    Returns the names of those that had to be killed.
    """

    def kill(root: "subprocess.Popen[bytes]", patience_seconds: float) -> list[str]:
        family = _below(root.pid)
        root.kill()
        root.wait()
        deadline = time.monotonic() + patience_seconds
        while (left := _still_there(family)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            os.kill(process.pid, signal.SIGKILL)
        return sorted(process.name for process in left)

    return kill


@pytest.fixture(scope="session")
def named_below() -> NamedBelow:
    """The pids of the processes below one whose names begin so; Linux keeps 15 characters of a name."""

    def find(root: "subprocess.Popen[bytes]", name: str) -> list[int]:
        return sorted(process.pid for process in _below(root.pid) if process.name.startswith(name))

    return find


@pytest.fixture(scope="session")
def pool_workers(named_below: NamedBelow) -> PoolWorkers:
    """The pids of the actors that work on units below a process."""
    return lambda root: named_below(root, "ray::MapWorker")
