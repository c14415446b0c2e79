"""Kills a process that a test started with its descendants, and no other process."""

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
    """All processes of this machine by pid, without zombies."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue  # it ended meanwhile
        # The name is in brackets, and may contain blanks and brackets itself.
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
    """The processes that still live; a pid that another process has taken meanwhile is ignored."""
    now = _processes()
    return [
        process for process in family if process.pid in now and now[process.pid].started_ticks == process.started_ticks
    ]


@pytest.fixture(scope="session")
def kill_tree() -> KillTree:
    """Kills a process by SIGKILL; its descendants get some seconds to end, then they are killed too.

    Returns the names of the descendants that had to be killed.
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
    """Finds the descendants of a process by how their name begins; Linux keeps 15 characters of a name."""

    def find(root: "subprocess.Popen[bytes]", name: str) -> list[int]:
        return sorted(process.pid for process in _below(root.pid) if process.name.startswith(name))

    return find


@pytest.fixture(scope="session")
def pool_workers(named_below: NamedBelow) -> PoolWorkers:
    """Finds the actors of a process that process work units."""
    return lambda root: named_below(root, "ray::MapWorker")
