"""Checkpoints of a run: weights, optimizer, cursor and ledger in one folder, which is whole once its last file stands.

Ray Train keeps the newest ones and deletes the others. Which of them a run goes on from is read off the folders
themselves: Ray's own note of that is overwritten in place, and lacks what was written since its controller looked.
"""

import safetensors.torch

from mode_ray.run_directory import CHECKPOINT_WEIGHTS, STATE_FILE
from mode_ray.storage import Location
from mode_ray.train.step.loop import Snapshot


def checkpoint_name(samples_seen: int) -> str:
    """Name of a checkpoint's folder; names sort by samples."""
    return f"checkpoint-{samples_seen:018d}"


def write_checkpoint(folder: Location, snapshot: Snapshot) -> None:
    """Write a checkpoint, the state last."""
    (folder / CHECKPOINT_WEIGHTS).write_bytes(safetensors.torch.save(dict(snapshot.weights)))
    (folder / STATE_FILE).write_bytes(snapshot.state)


def read_checkpoint(folder: Location) -> Snapshot:
    """Read a whole checkpoint."""
    weights = safetensors.torch.load((folder / CHECKPOINT_WEIGHTS).read_bytes())
    return Snapshot(weights, (folder / STATE_FILE).read_bytes())


def whole_checkpoints(checkpoints: Location) -> list[Location]:
    """The whole checkpoints in a run's folder of checkpoints, the newest last."""
    files = checkpoints.files(recursive=True)
    with_weights = {file.parent for file in files if file.name == CHECKPOINT_WEIGHTS}
    with_state = {file.parent for file in files if file.name == STATE_FILE}
    return sorted(with_weights & with_state)
