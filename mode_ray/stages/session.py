"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import _raylet
from ray._private import ray_constants

from mode_ray.config.run import RayConfig
from mode_ray.errors import WorkerError
from mode_ray.stages.access_token import AUTH_MODE, TOKEN_PATH, new_token_file, publish
from mode_ray.stages.quiet import quiet_ray

# Read by Ray when it starts its processes; set only while a cluster runs that is started here.
_LOCAL_ENVIRONMENT = {
    AUTH_MODE: "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # see _loopback_only
    # The workers of a training run connect to each other by gloo, which listens on the machine's address by default.
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MALLOC_ARENA_MAX": "2",  # saves memory: Ray runs some thirty processes with many threads each
}

# By `ray.init`, and left behind by `ray.shutdown`.
_SET_BY_RAY = ("PYTHONBREAKPOINT",)
_TIMED_OUT = "timed out during startup"


def joins_cluster(config: RayConfig) -> bool:
    """Whether a session uses a cluster that exists, whose nodes may differ from this machine."""
    return ray.is_initialized() or bool(config.address or os.environ.get("RAY_ADDRESS"))


@contextmanager
def ray_session(config: RayConfig) -> Iterator[str]:
    """Join the cluster of the config or of RAY_ADDRESS; without one, start a cluster here and end it afterwards.

    A cluster that is started here listens on the loopback interface only, and refuses processes without its access
    token; see mode_ray.stages.access_token. The environment is restored when it has ended.

    If Ray is initialised already, for example in a notebook, that session is used and left as it is.

    Yields:
        Address of the cluster's dashboard, `host:port`; empty without one.

    Raises:
        UsageError: The access token cannot be stored.
        WorkerError: Ray does not start in time.
    """
    if ray.is_initialized():
        yield ray.init(ignore_reinit_error=True).dashboard_url or ""
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    session = _joined(address, config) if address else _started(config)
    with _restored(_SET_BY_RAY), session as dashboard, quiet_ray():
        yield dashboard


@contextmanager
def _joined(address: str, config: RayConfig) -> Iterator[str]:
    cluster = ray.init(address=address, log_to_driver=config.log_to_driver, logging_level=logging.WARNING)
    try:
        yield cluster.dashboard_url or ""
    finally:
        ray.shutdown()


@contextmanager
def _started(config: RayConfig) -> Iterator[str]:
    with new_token_file(os.environ) as token_file:
        token = {} if token_file is None else {TOKEN_PATH: str(token_file)}
        with _environment({**_LOCAL_ENVIRONMENT, **token}), _loopback_only():
            try:
                with start_errors():
                    cluster = ray.init(
                        address="local",  # the default would join a cluster that `ray start` began on this machine
                        num_cpus=config.num_cpus,
                        object_store_memory=config.object_store_bytes,
                        include_dashboard=config.dashboard,
                        dashboard_host="127.0.0.1",
                        log_to_driver=config.log_to_driver,
                        logging_level=logging.WARNING,
                    )
                dashboard: str = cluster.dashboard_url or ""
                if token_file is not None and dashboard:
                    publish(token_file, dashboard)
                yield dashboard
            finally:
                ray.shutdown()


@contextmanager
def start_errors() -> Iterator[None]:
    """Explain the time limit of a start: 30 seconds, which no setting of Ray 2.60 changes.

    There is no second attempt: Ray's processes of the first one live, and take memory, until this process ends.
    """
    try:
        yield
    except Exception as error:
        if _TIMED_OUT not in str(error):
            raise
        raise WorkerError(
            "Ray did not start within 30 seconds: this machine is busy, or short of memory. Run the command again "
            "when it is less busy; finished work is kept"
        ) from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set the variables that the user has not set, and undo it at the end."""
    added = {name: value for name, value in values.items() if not os.environ.get(name)}
    try:
        with _restored(added):
            os.environ.update(added)
            _read_environment_again()
            yield
    finally:
        _read_environment_again()


@contextmanager
def _restored(names: Iterable[str]) -> Iterator[None]:
    """Give variables the values at the end that they have now."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _read_environment_again() -> None:
    """Ray keeps the authentication mode and the token in memory once it has read them."""
    compiled: Any = _raylet  # without type hints
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Make Ray's processes listen on 127.0.0.1 only.

    They do if that is the node's address. Ray replaces it by the machine's address, even if `ray.init` is given
    another, unless clusters of several machines are switched off, as they are on macOS and Windows. Ray reads this
    switch when it is imported: the attribute changes it in this process, the variable in the processes that it starts.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
