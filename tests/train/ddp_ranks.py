"""One of several gloo processes that train a model together; run by test_loop.py as a script."""

import sys
from pathlib import Path

import open_clip
import safetensors.torch
import torch
import torch.distributed

from mode_ray.expert_data import TrainingSet
from mode_ray.train.budget import Trial
from mode_ray.train.data import TrainBatch
from mode_ray.train.loop import TrainLoop
from mode_ray.train_config import TrainConfig


def main(folder: Path, rank: int, world_size: int) -> None:
    """Take this rank's parts of the batches in `folder`, step over them, and leave the weights there."""
    store = torch.distributed.FileStore(str(folder / "store"), world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    module, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", output_dict=True)
    config = TrainConfig.model_validate_json((folder / "train.json").read_text())
    batches = safetensors.torch.load_file(folder / "batches.safetensors")
    trial = Trial(name="n2/00", members=TrainingSet(kind="all"), samples=len(batches["images"]) * config.batch_size)
    loop = TrainLoop(module, trial, config, 0.0, rank, world_size)
    part = slice(rank * config.batch_size // world_size, (rank + 1) * config.batch_size // world_size)
    for images, texts in zip(batches["images"], batches["texts"], strict=True):
        loop.step(TrainBatch(images[part], texts[part], torch.arange(config.batch_size)[part]))
    safetensors.torch.save_file(module.state_dict(), folder / f"rank{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
