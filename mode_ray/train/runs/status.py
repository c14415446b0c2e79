"""The status of each trial: its `status.json`, which only the scheduler writes.

While a trial runs, its rank 0 writes its newest figures to `progress.json`. The scheduler copies them to the status
every few seconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from mode_ray.errors import DataError
from mode_ray.run_directory import STATUS_FILE
from mode_ray.storage import Location

if TYPE_CHECKING:  # `mode-ray status` reads the files without importing the planner
    from mode_ray.train.plan import Trial

TrialState = Literal["waiting", "running", "finished", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialStatus:
    """The status of a trial; `status.json` in its directory.

    Attributes:
        trial: Name of the trial.
        state: waiting, running, finished or failed.
        samples: Samples of the whole trial.
        launches: Number of launches.
        seconds: Wall time of the launches that have ended.
        reason: Reason of the failure.
        samples_seen: Samples seen at the newest figures; after a failure the trial resumes from its checkpoint.
        workers: Number of workers at the newest figures; it changes in elastic runs.
        samples_per_second: Newest speed.
        loss: Newest loss.
        data_wait_share: Newest share of time spent waiting for data.
        eta_seconds: Remaining time at that speed, while the trial runs.
        checkpoint_samples: Samples seen at the newest checkpoint.
        checkpoint_unix_seconds: Time at which that was written.
        taken_from: Folder of another run from which the trial was copied.
        interruptions: How often in this invocation Ray lost its workers or a launch, and training resumed.
        interrupted_by: Ray's reason of the newest of them.
        on_demand: Whether it requests on-demand machines only, because no other machine came in time.
    """

    trial: str
    state: TrialState
    samples: int
    launches: int = 0
    seconds: float = 0.0
    reason: str | None = None
    samples_seen: int = 0
    workers: int | None = None
    samples_per_second: float | None = None
    loss: float | None = None
    data_wait_share: float | None = None
    eta_seconds: float | None = None
    checkpoint_samples: int | None = None
    checkpoint_unix_seconds: float | None = None
    taken_from: str | None = None
    interruptions: int = 0
    interrupted_by: str | None = None
    on_demand: bool = False


def read_status(folder: Location) -> TrialStatus | None:
    """The status file of a trial's directory, or None.

    Raises:
        DataError: The file is not the JSON of a status.
    """
    location = folder / STATUS_FILE
    if not location.exists():
        return None
    try:
        return TrialStatus(**json.loads(location.read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{location}: not a status ({error}); delete it and run the train stage again") from None


def write_status(folder: Location, status: TrialStatus) -> None:
    """Write the status file of a trial's directory."""
    (folder / STATUS_FILE).write_text(json.dumps(asdict(status), indent=1))


def stored_statuses(trials: "Sequence[Trial]", experts: Location) -> dict[str, TrialStatus]:
    """The statuses in the trials' files; a trial without a file is waiting."""
    return {
        trial.name: read_status(experts / trial.name)
        or TrialStatus(trial=trial.name, state="waiting", samples=trial.samples)
        for trial in trials
    }


def initial_statuses(trials: "Sequence[Trial]", experts: Location) -> dict[str, TrialStatus]:
    """Statuses at the start of an invocation: finished trials stay finished, all others are waiting."""
    return {
        name: status if status.state == "finished" else waiting_again(status)
        for name, status in stored_statuses(trials, experts).items()
    }


def waiting_again(status: TrialStatus) -> TrialStatus:
    """The status of a trial that should continue; its failure is cleared."""
    return replace(
        at_checkpoint(status), state="waiting", reason=None, interruptions=0, interrupted_by=None, on_demand=False
    )


def interrupted(status: TrialStatus, reason: str) -> TrialStatus:
    """The status of a trial whose workers or launch were lost."""
    return replace(at_checkpoint(status), interruptions=status.interruptions + 1, interrupted_by=reason)


def at_checkpoint(status: TrialStatus) -> TrialStatus:
    """A status without the figures of workers that have ended: training resumes from the newest checkpoint."""
    return replace(
        status,
        samples_seen=status.checkpoint_samples or 0,
        workers=None,
        samples_per_second=None,
        loss=None,
        data_wait_share=None,
        eta_seconds=None,
    )


def with_progress(status: TrialStatus, progress: Mapping[str, float]) -> TrialStatus:
    """A running trial's status with the figures of its progress file."""
    seen, rate = int(progress["samples"]), progress.get("samples_per_second")
    if "checkpoint_samples" in progress:  # else the newest checkpoint is the previous worker's
        status = replace(
            status,
            checkpoint_samples=int(progress["checkpoint_samples"]),
            checkpoint_unix_seconds=progress["checkpoint_unix_seconds"],
        )
    return replace(
        status,
        samples_seen=seen,
        workers=int(progress["workers"]),
        samples_per_second=rate,
        loss=progress.get("loss"),
        data_wait_share=progress.get("data_wait_share"),
        eta_seconds=round((status.samples - seen) / rate, 1) if rate else None,
    )
