"""One of several gloo processes that agree on orders; run by test_agreement.py as a script."""

import json
import sys
from pathlib import Path

import torch.distributed

from mode_ray.train.runs.agreement import Agreement, Order


def main(folder: Path, rank: int, world_size: int) -> None:
    """Exchange rank 0's orders, and leave what this rank was told."""
    store = torch.distributed.FileStore(str(folder / "store"), world_size)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    agreement = Agreement()
    wanted = [Order.CHECKPOINT, Order.NOTHING, Order.ASK_FOR_PREEMPTION, Order.CHECKPOINT, Order.NOTHING]
    told = [agreement.exchange(order if rank == 0 else Order.NOTHING) for order in wanted]
    agreement.forget()
    # After a rollback no order of before counts.
    agreement.exchange(Order.CHECKPOINT if rank == 0 else Order.NOTHING)
    agreement.forget()
    told.append(agreement.exchange(Order.NOTHING))
    agreement.forget()
    (folder / f"rank{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
