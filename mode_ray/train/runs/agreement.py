"""Distributes rank 0's decisions to all ranks, so that they do the same after the same step without waiting."""

from enum import IntEnum
from typing import Any

import torch
import torch.distributed


class Order(IntEnum):
    """What all ranks do between two steps."""

    NOTHING = 0
    ASK_FOR_PREEMPTION = 1
    CHECKPOINT = 2


class Agreement:
    """Ranks apply rank 0's previous decision, so that the broadcast overlaps the step.

    All methods are collective: every rank creates one, and makes the same calls at the same steps.
    """

    def __init__(self) -> None:
        # On the CPU with any device: reading the answer from a GPU would make every step wait for the GPU.
        self._group: Any = torch.distributed.new_group(backend="gloo")
        self._pending: tuple[Any, torch.Tensor] | None = None

    def exchange_on_all_ranks(self, wanted: Order) -> Order:
        """Broadcast rank 0's order, and return the order of the step before."""
        before = self._received()
        order = torch.tensor([wanted], dtype=torch.uint8)
        work = torch.distributed.broadcast(order, src=0, group=self._group, async_op=True)
        self._pending = (work, order)
        return before

    def drop_on_all_ranks(self) -> None:
        """Discard the last order."""
        self._received()

    def _received(self) -> Order:
        if self._pending is None:
            return Order.NOTHING
        work, order = self._pending
        self._pending = None
        work.wait()
        return Order(int(order))
