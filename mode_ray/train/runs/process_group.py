"""Joins the workers of a run to a torch process group.

Ray's `TorchConfig` does the same, but it imports torch in the launcher and in the controller of every run. Both are on
the head, where each then takes 270 MB more. Here only the workers import torch.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

_SHUTDOWN_SECONDS = 30.0


@dataclass
class ProcessGroupConfig(BackendConfig):
    """Which process group Ray Train sets up: NCCL if the workers have GPUs, otherwise gloo.

    Attributes:
        timeout_seconds: Time after which a collective operation fails.
    """

    timeout_seconds: float = 1800.0

    @property
    def backend_cls(self) -> "type[ProcessGroup]":
        """What Ray Train calls."""
        return ProcessGroup

    def to_dict(self) -> dict[str, Any]:
        """For Ray's dashboard."""
        return {"timeout_seconds": self.timeout_seconds}


class ProcessGroup(Backend):
    """Called in the controller; the functions that it executes run in the workers."""

    # As with Ray's own backend for torch: NCCL needs to see the GPUs of all workers of the node.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ANN401
        """Join all workers, which are new."""
        if not isinstance(backend_config, ProcessGroupConfig):
            raise TypeError(f"{type(backend_config).__name__}: not the config of this backend")
        kind = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        address, port = worker_group.execute_single(0, _free_address)
        size = len(worker_group)
        place = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        run: Callable[..., Any] = worker_group.execute_single_async
        ray.get(
            [
                run(number, _join, kind, {**place, "RANK": str(number)}, backend_config.timeout_seconds)
                for number in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ANN401, ARG002
        """Leave the group; workers that do not respond in time are ended by Ray Train all the same."""
        ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=_SHUTDOWN_SECONDS)


def _free_address() -> tuple[str, int]:
    """Address of this node, and a port that is free on it."""
    with socket.socket() as found:
        found.bind(("", 0))
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return address, int(found.getsockname()[1])


def _join(kind: str, place: dict[str, str], timeout_seconds: float) -> None:
    import torch.distributed

    context = ray.train.get_context()
    os.environ.update(
        {
            **place,
            "LOCAL_RANK": str(context.get_local_rank()),
            "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
            "NODE_RANK": str(context.get_node_rank()),
        }
    )
    if kind == "nccl":  # a collective that hangs ends the process
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    torch.distributed.init_process_group(kind, timeout=timedelta(seconds=timeout_seconds))


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
