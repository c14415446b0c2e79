"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data
from ray.util.debug import log_once

from mode_ray.config.run import RayConfig

# Read by Ray when it starts its processes; set only for clusters that are started here.
_LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # loopback only; on clusters the operator sets `token`
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MALLOC_ARENA_MAX": "2",  # Ray runs some thirty processes with many threads each: glibc's arenas add up
}


@contextmanager
def ray_session(config: RayConfig) -> Iterator[str]:
    """Use the cluster of the config or of RAY_ADDRESS, else start one here and end it afterwards.

    Where Ray is already initialised (a notebook, a test) that session is used and left alone.

    Yields:
        Where the cluster's dashboard is, `host:port`; empty without one.
    """
    if ray.is_initialized():
        yield ray.init(ignore_reinit_error=True).dashboard_url or ""
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    if not address:
        for name, value in _LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        cluster = ray.init(
            address="local",  # without it Ray joins whatever cluster `ray start` last began on this machine
            num_cpus=config.num_cpus,
            object_store_memory=config.object_store_bytes,
            include_dashboard=config.dashboard,
            log_to_driver=config.log_to_driver,
            logging_level=logging.WARNING,
        )
    else:
        cluster = ray.init(address=address, log_to_driver=config.log_to_driver, logging_level=logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    log_once("ray_data_progress_manager_disabled")  # Ray would remind of it, once a process
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield cluster.dashboard_url or ""
    finally:
        ray.shutdown()
