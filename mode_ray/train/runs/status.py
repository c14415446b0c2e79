"""How the trials stand: one `status.json` each, which the scheduler alone writes, for people and later invocations.

While a trial runs, its rank 0 leaves its newest figures in `progress.json`; the scheduler takes them over every few
seconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from mode_ray.errors import DataError
from mode_ray.run_directory import STATUS_FILE
from mode_ray.storage import Location

if TYPE_CHECKING:  # `mode-ray status` reads the files without what plans the trials
    from mode_ray.train.plan import Trial

TrialState = Literal["waiting", "running", "finished", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialStatus:
    """How a trial stands; `status.json` in its directory.

    Attributes:
        trial: Its name.
        state: waiting, running, finished or failed.
        samples: Samples it is to see.
        launches: How often it was started.
        seconds: Wall time of its launches that have ended.
        reason: Why it failed.
        samples_seen: Samples it has seen, by its newest figures; after a failure it goes on from its checkpoint.
        workers: Workers that trained it when they were last heard of; elastic runs change their number.
        samples_per_second: Newest measured speed.
        loss: Newest measured loss.
        data_wait_share: Share of its time that it waits for data, newest measured.
        eta_seconds: Time to its end at that speed, while it runs.
        checkpoint_samples: Samples in its newest checkpoint.
        checkpoint_unix_seconds: When that was written.
        taken_from: The folder that it was taken over from, as it was.
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
    """The statuses of the trials as their files tell; those without one wait."""
    return {
        trial.name: read_status(experts / trial.name)
        or TrialStatus(trial=trial.name, state="waiting", samples=trial.samples)
        for trial in trials
    }


def initial_statuses(trials: "Sequence[Trial]", experts: Location) -> dict[str, TrialStatus]:
    """Statuses at the start of an invocation that trains all: finished trials stay so, all others wait (again)."""
    return {
        name: status if status.state == "finished" else waiting_again(status)
        for name, status in stored_statuses(trials, experts).items()
    }


def waiting_again(status: TrialStatus) -> TrialStatus:
    """The status of a trial that is to go on, its failure forgotten."""
    return replace(status, state="waiting", reason=None, eta_seconds=None)


def with_progress(status: TrialStatus, progress: Mapping[str, float]) -> TrialStatus:
    """A running trial's status with the figures of its progress file."""
    seen, rate = int(progress["samples"]), progress.get("samples_per_second")
    if "checkpoint_samples" in progress:  # until a worker has written one, that of the worker before is the newest
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
