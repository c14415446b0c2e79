"""The progress of a run, computed from its directory on any machine that can read it."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Group

from mode_ray.errors import DataError
from mode_ray.observe.activity import STALL_SECONDS, Inactivity, inactivity
from mode_ray.observe.progress import trials_table
from mode_ray.run_directory import (
    FIT_PROGRESS,
    LEASE_FILE,
    OPTIONAL_STAGES,
    RUN_CONFIG,
    STAGE_DIRECTORIES,
    STARTED,
    STATUS_FILE,
    TASK_SUMMARY,
    is_unit_output,
    require_run,
)
from mode_ray.stages.manifest import Manifest, StageState, read_manifest
from mode_ray.storage import FileEntry, Location
from mode_ray.train.runs.status import TrialStatus, read_status
from mode_ray.util.tables import WideTable, duration, short_count

_RATE_WINDOW_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class StageView:
    """The progress of one stage.

    Attributes:
        name: Name of the stage.
        state: absent, started or done.
        done: Finished units.
        units: All units; 0 before the stage has begun.
        eta_seconds: Time left at the speed of the last minutes; None if unknown.
        newest_unix_seconds: Last write to its directory by the storage's clock; 0 before the stage has begun.
        manifest: The manifest of a finished stage.
        trials: The training runs of the train stage.
        inactivity: Of a started stage on which nobody seems to work.
    """

    name: str
    state: StageState
    done: int = 0
    units: int = 0
    eta_seconds: float | None = None
    newest_unix_seconds: float = 0.0
    manifest: Manifest | None = None
    trials: Sequence[TrialStatus] = ()
    inactivity: Inactivity | None = None


def stages_of(run: Location) -> list[str]:
    """The stages of a run, in order; an optional one only once it has begun."""
    return [
        name
        for name, directory in STAGE_DIRECTORIES.items()
        if name not in OPTIONAL_STAGES or (run / directory / STARTED).exists()
    ]


def look_at_stage(
    run: Location, name: str, stall_seconds: float = STALL_SECONDS, now_unix_seconds: float | None = None
) -> StageView:
    """The progress of a stage. A running stage takes one listing of its directory, and one file per training run.

    Args:
        run: The run directory.
        name: Name of the stage.
        stall_seconds: Time without output after which a stage counts as stalled.
        now_unix_seconds: The time; by default that of this machine.

    Raises:
        DataError: A file of the stage is damaged.
    """
    directory = run / STAGE_DIRECTORIES[name]
    manifest = read_manifest(directory)
    if manifest is not None:
        units = manifest.units
        return StageView(name=name, state="done", done=units, units=units, manifest=manifest)
    entries = directory.entries(recursive=True)
    started = next((entry for entry in entries if entry.location == directory / STARTED), None)
    if started is None:
        return StageView(name=name, state="absent")
    note = _read_json(started.location)
    # An idle driver also renews its lease.
    newest = max(entry.modified_unix_seconds for entry in entries if entry.location.name != LEASE_FILE)
    trials: list[TrialStatus] = []
    if name == "train":
        folders = [entry.location.parent for entry in entries if entry.location.name == STATUS_FILE]
        trials = [status for folder in folders if (status := read_status(folder)) is not None]
        done, eta = sum(status.state == "finished" for status in trials), training_eta_seconds(trials)
    elif name == "cluster":
        done, eta = 0, _fit_eta_seconds(run, note["began_unix_seconds"], entries)
    else:
        written = [entry.modified_unix_seconds for entry in entries if _is_unit(name, entry.location.name)]
        done, eta = len(written), units_eta_seconds(written, note["units"])
    now = time.time() if now_unix_seconds is None else now_unix_seconds
    found = inactivity(run, name, newest, now, stall_seconds)
    return StageView(
        name=name,
        state="started",
        done=done,
        units=note["units"],
        eta_seconds=eta if found is None else None,
        newest_unix_seconds=newest,
        trials=trials,
        inactivity=found,
    )


def units_eta_seconds(written_unix_seconds: Sequence[float], units: int) -> float | None:
    """Time to the last unit at the speed of the ten minutes before the newest one; None for fewer than two units.

    Only times of the storage's clock are compared.
    """
    if len(written_unix_seconds) < 2:
        return None
    newest = max(written_unix_seconds)
    recent = [moment for moment in written_unix_seconds if newest - moment <= _RATE_WINDOW_SECONDS]
    span = newest - min(recent)
    return (units - len(written_unix_seconds)) * span / (len(recent) - 1) if span > 0 else None


def training_eta_seconds(trials: Sequence[TrialStatus]) -> float | None:
    """Time to the end of all runs: all samples left at the speed of the running ones, or the slowest run if longer."""
    running = [status for status in trials if status.state == "running"]
    rate = sum(status.samples_per_second or 0.0 for status in running)
    if rate == 0.0:
        return None
    left = sum(status.samples - status.samples_seen for status in trials if status.state in ("waiting", "running"))
    return max([left / rate, *(status.eta_seconds or 0.0 for status in running)])


def status_table(run: Location) -> WideTable:
    """One row per stage: state, done/total units, rows in and out, refused rows, and the time taken or left.

    Raises:
        UsageError: There is no run in this directory.
    """
    require_run(run)
    return stages_table(run, [look_at_stage(run, name) for name in stages_of(run)])


def stages_table(run: Location, views: Sequence[StageView]) -> WideTable:
    """The table of `status_table` from views."""
    headings = ("stage", "state", "units", "rows in", "rows out", "refused", "left out", "time")
    caption = "\n".join(view.inactivity.reason for view in views if view.inactivity is not None)
    table = WideTable(str(run), *headings, words=2, caption=caption)
    for view in views:
        table.add_row(view.name, _shown_state(view), *_cells(view))
    return table


def trial_table(run: Location) -> Group | None:
    """One row per training run, or None if there are none."""
    view = look_at_stage(run, "train")
    statuses = view.trials
    if view.state != "started":
        files = (run / STAGE_DIRECTORIES["train"]).files(recursive=True)
        found = [read_status(file.parent) for file in files if file.name == STATUS_FILE]
        statuses = [status for status in found if status is not None]
    return trials_table(statuses, time.time(), ended=has_ended(view)) if statuses else None


def has_ended(view: StageView) -> bool:
    """Whether the stage is not done, but its driver has ended."""
    return view.inactivity is not None and view.inactivity.ended


def _shown_state(view: StageView) -> str:
    if view.inactivity is None:
        return view.state
    return "stopped" if view.inactivity.ended else "stalled"


def _cells(view: StageView) -> tuple[str, ...]:
    if view.state == "absent":
        return ("",) * 6
    units = f"{view.done}/{view.units}"
    if view.manifest is None:
        return (units, "", "", "", "", "" if view.eta_seconds is None else f"{duration(view.eta_seconds)} left")
    refused, left_out = sum(view.manifest.refused.values()), len(view.manifest.quarantined)
    numbers = (view.manifest.rows_in, view.manifest.rows_out, refused, left_out)
    return (units, *map(short_count, numbers), duration(view.manifest.seconds))


def _is_unit(stage: str, file_name: str) -> bool:
    """Whether the stage writes this file for each finished unit."""
    return file_name == TASK_SUMMARY if stage == "evaluate" else is_unit_output(file_name)


def _fit_eta_seconds(run: Location, began_unix_seconds: float, entries: Sequence[FileEntry]) -> float | None:
    """Time to the largest number of iterations. The fit may converge earlier, and is faster if it was resumed."""
    report = next((entry for entry in entries if entry.location.name == FIT_PROGRESS), None)
    if report is None:
        return None
    try:
        newest = _read_json(report.location)
    except FileNotFoundError:  # the fit ended after the listing
        return None
    done = int(newest["iteration"])
    most = int(yaml.safe_load((run / RUN_CONFIG).read_text())["cluster"]["fine"]["iterations"])
    most += newest.get("extended_from") or 0
    return max(0, most - done) * max(0.0, report.modified_unix_seconds - began_unix_seconds) / done


def _read_json(file: Location) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); run the stage again to write it anew") from None
    return values
