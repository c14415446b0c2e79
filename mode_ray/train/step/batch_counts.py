"""Counts of the batches that a run trained on, and their sum over all ranks."""

from dataclasses import dataclass

import torch.distributed

LEDGER_MODULUS = 2**63


@dataclass(frozen=True)
class BatchCounts:
    """Counts of some batches.

    Attributes:
        bad_images: Images that could not be decoded.
        first_bad_image: Error message of the first one, or an empty string.
        ledger: Sum of the batches' ledgers, modulo 2^63.
    """

    bad_images: int = 0
    first_bad_image: str = ""
    ledger: int = 0

    def __add__(self, later: "BatchCounts") -> "BatchCounts":
        return BatchCounts(
            self.bad_images + later.bad_images,
            self.first_bad_image or later.first_bad_image,
            (self.ledger + later.ledger) % LEDGER_MODULUS,
        )


def all_gather_sum(own: BatchCounts, world_size: int) -> BatchCounts:
    """The sum of every rank's own counts. Collective: every rank calls it at the same time."""
    if world_size == 1:
        return own
    gathered: list[BatchCounts] = [own] * world_size
    torch.distributed.all_gather_object(gathered, own)
    return sum(gathered, BatchCounts())
