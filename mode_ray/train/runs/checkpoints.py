"""Checkpoints of a run: weights, optimizer, cursor and ledger in one folder. Its last file makes it complete.

Ray Train keeps the newest checkpoints and deletes older ones. A run resumes from the newest complete folder. Ray's own
record of checkpoints is not used: it is overwritten in place, and it lacks those that its controller has not seen yet.
"""

import safetensors.torch

from mode_ray.run_directory import CHECKPOINT_WEIGHTS, STATE_FILE
from mode_ray.storage import Location
from mode_ray.train.step.loop import Snapshot

_PREFIX = "checkpoint-"


def checkpoint_name(samples_seen: int) -> str:
    """Name of a checkpoint's folder; names sort by samples."""
    return f"{_PREFIX}{samples_seen:018d}"


def checkpoint_samples(checkpoints: Location) -> int:
    """Samples of the newest complete checkpoint, 0 without one."""
    newest = whole_checkpoints(checkpoints)[-1:]
    return int(newest[0].name.removeprefix(_PREFIX)) if newest else 0


def write_checkpoint(folder: Location, snapshot: Snapshot) -> None:
    """Write a checkpoint, the state last."""
    (folder / CHECKPOINT_WEIGHTS).write_bytes(safetensors.torch.save(dict(snapshot.weights)))
    (folder / STATE_FILE).write_bytes(snapshot.state)


def read_checkpoint(folder: Location) -> Snapshot:
    """Read a complete checkpoint."""
    weights = safetensors.torch.load((folder / CHECKPOINT_WEIGHTS).read_bytes())
    return Snapshot(weights, (folder / STATE_FILE).read_bytes)


def whole_checkpoints(checkpoints: Location) -> list[Location]:
    """The complete checkpoints in a run's folder of checkpoints, the newest last."""
    files = checkpoints.files(recursive=True)
    with_weights = {file.parent for file in files if file.name == CHECKPOINT_WEIGHTS}
    with_state = {file.parent for file in files if file.name == STATE_FILE}
    return sorted(with_weights & with_state)
