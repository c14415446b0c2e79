"""Hides a few messages of Ray's that a user can do nothing about; all others are shown."""

import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_logging
from ray.util.debug import log_once

# Printed by Ray's compiled code, once a process, for the first actor pool of Ray Data: Ray Data itself passes the
# arguments of its actors through the object store, and keeps references to them as long as the pool lives.
_ACTOR_ARGUMENTS = re.compile(rb"has constructor arguments in the object store and max_restarts > 0")
# Sent by a node with more processes than CPUs: launchers and other actors that only wait take none.
_MANY_PROCESSES = re.compile(r"worker processes have been started on node")


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Hide those of Ray's nodes within the block; Ray must be initialised."""
    # The same as the variable RAY_DEDUP_LOGS_SKIP_REGEX, which is read when Ray is imported.
    deduplicator: Any = ray_logging.stdout_deduplicator
    before = deduplicator.skip_re
    if before is None:
        deduplicator.skip_re = _MANY_PROCESSES
    try:
        yield
    finally:
        deduplicator.skip_re = before


@functools.cache
def quiet_ray_data() -> None:
    """Hide those of Ray Data in this process; Ray must be initialised. Call it before Ray Data is used."""
    from ray.data import DataContext  # takes a second to import

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    log_once("ray_data_progress_manager_disabled")  # a reminder that progress bars are off
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with error_output_without(_ACTOR_ARGUMENTS):
        _print_actor_warning()


def _print_actor_warning() -> None:
    """Make Ray print the warning now, by an actor that is never started."""
    unused: Any = ray.remote(_Unused)
    ray.kill(unused.options(num_cpus=0, max_restarts=1, resources={"mode_ray_none": 1}).remote(ray.put(None)))


class _Unused:
    def __init__(self, _: None) -> None:
        """Takes an argument from the object store."""


@contextmanager
def error_output_without(pattern: re.Pattern[bytes]) -> Iterator[None]:
    """Leave out the lines with this pattern of all that the process writes to its error output.

    What compiled code writes is covered too. Everything else appears when the block ends: keep it short.
    """
    sys.stderr.flush()
    error_output = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(error_output, 2)
            os.close(error_output)
            caught.seek(0)
            os.write(2, b"".join(line for line in caught if not pattern.search(line)))
