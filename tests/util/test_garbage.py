"""Garbage collections are skipped at the end of a process, and on request before it."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, sys
from mode_ray.util import garbage

began = sum(generation["collections"] for generation in gc.get_stats())
atexit.register(lambda: print(gc.get_freeze_count() > 1000, gc.get_count()[0] < 10))
getattr(garbage, sys.argv[1])()
kept = [[] for _ in range(100_000)]
print(sum(generation["collections"] for generation in gc.get_stats()) > began)
"""


@pytest.mark.parametrize(
    ("name", "collections"), [("run_without_collections", False), ("end_without_collections", True)]
)
def test_at_the_end_there_is_no_collection(name: str, collections: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(collections), "True True"]
