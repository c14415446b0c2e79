"""Whether anyone works on a stage that is not done: the one owner of this question, for `status` and `status --watch`.

A run's directory does not name its driver, except for training: a driver that trains renews its lease every two
seconds. The other stages are judged by the age of their newest output.
"""

from dataclasses import dataclass

from mode_ray.run_directory import STAGE_DIRECTORIES
from mode_ray.storage import Location
from mode_ray.train.runs.lease import EXPIRY_SECONDS, lease_holder
from mode_ray.util.tables import duration

STALL_SECONDS = 600.0
_RESUME = "the same command resumes"
# Clocks of the storage and of this machine may differ by less than this.
_LEASE_SECONDS = 6 * EXPIRY_SECONDS


@dataclass(frozen=True)
class Inactivity:
    """A stage that is not done, and on which nobody seems to work.

    Attributes:
        reason: One sentence.
        ended: Whether its driver is known to have ended; else the stage may only be slow.
    """

    reason: str
    ended: bool


def inactivity(
    run: Location, stage: str, newest_unix_seconds: float, now_unix_seconds: float, stall_seconds: float
) -> Inactivity | None:
    """Whether nobody works on a stage, or nothing new was written for too long; None if it makes progress.

    This compares the clocks of the storage and of this machine. They should agree within a minute.

    Args:
        run: The run directory.
        stage: A stage that is not done.
        newest_unix_seconds: Last write to its directory, or the end of the stage before; 0 if it is not known.
        now_unix_seconds: The time by the clock of this machine.
        stall_seconds: Time without output after which a stage counts as stalled.
    """
    if newest_unix_seconds == 0.0:
        return None
    silent = now_unix_seconds - newest_unix_seconds
    nothing_new = f"{stage}: nothing new for {duration(silent)}"
    if stage != "train":
        reason = f"{nothing_new}; if its driver has ended, {_RESUME}"
        return None if silent < stall_seconds else Inactivity(reason, ended=False)
    if silent < min(_LEASE_SECONDS, stall_seconds):
        return None
    holder = lease_holder(run / STAGE_DIRECTORIES[stage])
    if holder is None:
        return Inactivity(f"{nothing_new}; no driver holds its lease: {_RESUME}", ended=True)
    age = max(0.0, now_unix_seconds - holder.renewed_unix_seconds)
    renewed = f"{holder.name} holds its lease, renewed {duration(age)} ago"
    if age > _LEASE_SECONDS:
        return Inactivity(f"{nothing_new}; {renewed}: that driver has ended, {_RESUME}", ended=True)
    return None if silent < stall_seconds else Inactivity(f"{nothing_new}; {renewed}", ended=False)
