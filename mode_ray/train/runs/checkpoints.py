"""Checkpoints of a run: weights, optimizer, cursor and ledger in one folder. Its last file makes it complete."""

import safetensors.torch

from mode_ray.run_directory import CHECKPOINT_WEIGHTS, STATE_FILE
from mode_ray.storage import Location
from mode_ray.train.step.loop import Snapshot


def write_checkpoint(folder: Location, snapshot: Snapshot) -> None:
    """Write a checkpoint, the state last."""
    (folder / CHECKPOINT_WEIGHTS).write_bytes(safetensors.torch.save(dict(snapshot.weights)))
    (folder / STATE_FILE).write_bytes(snapshot.state)


def read_checkpoint(folder: Location) -> Snapshot:
    """Read a complete checkpoint."""
    weights = safetensors.torch.load((folder / CHECKPOINT_WEIGHTS).read_bytes())
    return Snapshot(weights, (folder / STATE_FILE).read_bytes)
