"""How the ranks of a run come to do the same after the same step, without waiting for one another."""

from enum import IntEnum
from typing import Any

import torch
import torch.distributed


class Order(IntEnum):
    """What all ranks are to do between two steps."""

    NOTHING = 0
    ASK_FOR_PREEMPTION = 1
    CHECKPOINT = 2


class Agreement:
    """All ranks do after a step what rank 0 wanted one step before: meanwhile its order has come, unhurried.

    Every rank must make one, and make the same calls of it at the same steps.
    """

    def __init__(self) -> None:
        # On the CPU whatever the device: asking a GPU for the answer would make every step wait for it.
        self._group: Any = torch.distributed.new_group(backend="gloo")
        self._under_way: tuple[Any, torch.Tensor] | None = None

    def exchange(self, wanted: Order) -> Order:
        """Send (or, on the other ranks, receive) this step's order; returns that of the step before."""
        before = self._received()
        order = torch.tensor([wanted], dtype=torch.uint8)
        work = torch.distributed.broadcast(order, src=0, group=self._group, async_op=True)
        self._under_way = (work, order)
        return before

    def forget(self) -> None:
        """Leave the last order undone."""
        self._received()

    def _received(self) -> Order:
        if self._under_way is None:
            return Order.NOTHING
        work, order = self._under_way
        self._under_way = None
        work.wait()
        return Order(int(order))
