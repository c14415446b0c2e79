"""Several gloo processes that agree on orders; run by test_agreement.py as a script."""

import json
import sys
from pathlib import Path

import torch.distributed
import torch.multiprocessing

from mode_ray.train.runs.agreement import Agreement, Order


def main(rank: int, folder: Path, world_size: int) -> None:
    """Exchange rank 0's orders, and write what this rank received."""
    store = torch.distributed.FileStore(str(folder / "store"), world_size)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    agreement = Agreement()
    wanted = [Order.CHECKPOINT, Order.NOTHING, Order.ASK_FOR_PREEMPTION, Order.CHECKPOINT, Order.NOTHING]
    received = [agreement.exchange_on_all_ranks(order if rank == 0 else Order.NOTHING) for order in wanted]
    agreement.drop_on_all_ranks()
    # After a rollback, earlier orders are dropped.
    agreement.exchange_on_all_ranks(Order.CHECKPOINT if rank == 0 else Order.NOTHING)
    agreement.drop_on_all_ranks()
    received.append(agreement.exchange_on_all_ranks(Order.NOTHING))
    agreement.drop_on_all_ranks()
    (folder / f"rank{rank}.json").write_text(json.dumps(received))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # Forked, because the import of torch takes longer than the rest.
    arguments = (Path(sys.argv[1]), int(sys.argv[2]))
    torch.multiprocessing.start_processes(main, arguments, int(sys.argv[2]), start_method="fork")  # type: ignore[attr-defined, no-untyped-call]
