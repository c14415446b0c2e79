"""Several gloo processes that train a model together; run by test_parallel.py as a script.

They train every case of `cases.json` from the same weights, each on its parts of the same batches, and leave what came
out.
"""

import copy
import functools
import gc
import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
import torch.distributed
import torch.multiprocessing
from torch.distributed.tensor import DTensor

from mode_ray.config.train import TrainConfig
from mode_ray.pairs.members import TrainingSet
from mode_ray.train.plan import Trial
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.loop import NonFiniteError, TrainLoop
from mode_ray.train.step.rank import Rank


def main(rank: int, folder: Path, world_size: int) -> None:
    """Run all cases as one rank."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), world_size)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        _run(folder, name, case, rank, world_size)
    torch.distributed.destroy_process_group()


def _run(folder: Path, name: str, case: dict[str, Any], rank: int, world_size: int) -> None:
    config = TrainConfig.model_validate_json(json.dumps(case["train"]))
    module = copy.deepcopy(_model(folder / case["model"]))
    batches = safetensors.torch.load_file(folder / "batches.safetensors")
    trial = Trial(name="n2/00", members=TrainingSet(kind="all"), samples=case["samples"])
    loop = TrainLoop(module, trial, config, 0.5, Rank(rank, world_size))
    if case["start"] is not None:
        loop.load_weights_on_all_ranks(safetensors.torch.load_file(folder / f"{case['start']}.safetensors"))
        loop.load_state_on_all_ranks((folder / f"{case['start']}.pt").read_bytes(), continues=True)
    part = slice(rank * config.batch_size // world_size, (rank + 1) * config.batch_size // world_size)
    result: dict[str, Any] = {"losses": [], "error_at": None}
    for step in case["steps"]:
        images = batches["images"][step][part]
        if case["poisoned_rank"] == rank:
            images = images * float("nan")
        batch = TrainBatch(
            images,
            batches["texts"][step][part],
            batches["ids"][step][part],
            bad_images=("a.tar: sample 3: damaged",) * rank,
            ledger=2**62 + rank,
        )
        try:
            result["losses"].append(loop.step(batch))
        except NonFiniteError as error:
            result["error_at"] = error.samples_seen
    gradients = {key: _whole(p.grad) for key, p in module.named_parameters() if p.grad is not None}
    snapshot = loop.gather_snapshot()
    result["state"] = vars(loop.state)
    (folder / f"{name}.rank{rank}.json").write_text(json.dumps(result))
    if rank == 0:
        safetensors.torch.save_file(gradients, folder / f"{name}.gradients.safetensors")
        safetensors.torch.save_file(dict(snapshot.weights), folder / f"{name}.safetensors")
        (folder / f"{name}.pt").write_bytes(snapshot.state)
    else:
        assert not snapshot.weights


@functools.cache
def _model(folder: Path) -> torch.nn.Module:
    module: torch.nn.Module = open_clip.create_model(f"local-dir:{folder}", output_dict=True)
    return module


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.contiguous()


if __name__ == "__main__":
    # Forked, because the imports take longer than the training. What they have made is no garbage.
    gc.freeze()
    arguments = (Path(sys.argv[1]), int(sys.argv[2]))
    torch.multiprocessing.start_processes(main, arguments, int(sys.argv[2]), start_method="fork")  # type: ignore[attr-defined, no-untyped-call]
