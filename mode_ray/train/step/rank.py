"""The place of this process among those that train a run together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """One of the processes of a run.

    Attributes:
        number: 0 to `world_size` - 1.
        world_size: Number of processes.
    """

    number: int
    world_size: int


ONLY_RANK = Rank(0, 1)
