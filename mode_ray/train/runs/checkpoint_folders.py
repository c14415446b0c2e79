"""The folders of a run's checkpoints: their names, and which of them are complete. Nothing here imports torch.

Ray Train keeps the newest checkpoints and deletes older ones. A run resumes from the newest complete folder. Ray's own
record of checkpoints is not used: it is overwritten in place, and it lacks those that its controller has not seen yet.
"""

from mode_ray.run_directory import CHECKPOINT_WEIGHTS, STATE_FILE
from mode_ray.storage import Location

_PREFIX = "checkpoint-"


def checkpoint_name(samples_seen: int) -> str:
    """Name of a checkpoint's folder; names sort by samples."""
    return f"{_PREFIX}{samples_seen:018d}"


def checkpoint_samples(checkpoints: Location) -> int:
    """Samples of the newest complete checkpoint, 0 without one."""
    newest = whole_checkpoints(checkpoints)[-1:]
    return int(newest[0].name.removeprefix(_PREFIX)) if newest else 0


def whole_checkpoints(checkpoints: Location) -> list[Location]:
    """The complete checkpoints in a run's folder of checkpoints, the newest last."""
    files = checkpoints.files(recursive=True)
    with_weights = {file.parent for file in files if file.name == CHECKPOINT_WEIGHTS}
    with_state = {file.parent for file in files if file.name == STATE_FILE}
    return sorted(with_weights & with_state)
