"""How far a run is, from its directory alone; works on any machine that can read it."""

import json
import time

from rich.markup import escape
from rich.table import Table

from mode_ray.errors import UsageError
from mode_ray.pipeline import STAGE_DIRECTORIES
from mode_ray.progress import trials_table
from mode_ray.stage import STARTED, read_manifest, unit_outputs
from mode_ray.storage import Location
from mode_ray.train.trial_status import STATUS_FILE, read_status


def status_table(run: Location) -> Table:
    """One line a stage: state, done/total units, rows in and out, refused, time.

    Raises:
        UsageError: There is no run in this directory.
    """
    if not (run / "config.yaml").exists():
        raise UsageError(f"{run}: no run here (no config.yaml); give the directory that the config calls `run`")
    table = Table(title=escape(str(run)))
    for column in ("stage", "state"):
        table.add_column(column)
    for column in ("units", "rows in", "rows out", "refused", "left out", "seconds"):
        table.add_column(column, justify="right")
    for name, folder in STAGE_DIRECTORIES.items():
        table.add_row(name, *_stage_row(name, run / folder))
    return table


def trial_table(run: Location) -> Table | None:
    """One line a training run, or None before there are any."""
    experts = run / STAGE_DIRECTORIES["train"]
    folders = [file.parent for file in experts.files(recursive=True) if file.name == STATUS_FILE]
    if not folders:
        return None
    statuses = [read_status(folder) for folder in folders]
    return trials_table((status for status in statuses if status is not None), time.time())


def _stage_row(name: str, directory: Location) -> tuple[str, ...]:
    manifest = read_manifest(directory)
    if manifest is not None:
        refused, left_out = sum(manifest.refused.values()), len(manifest.quarantined)
        rows = (f"{manifest.rows_in:,}", f"{manifest.rows_out:,}", f"{refused:,}", str(left_out))
        return ("done", f"{manifest.units}/{manifest.units}", *rows, f"{manifest.seconds:.1f}")
    started = directory / STARTED
    if not started.exists():
        return ("absent", "", "", "", "", "", "")
    units = json.loads(started.read_text())["units"]
    return ("started", f"{_units_done(name, directory)}/{units}", "", "", "", "", "")


def _units_done(name: str, directory: Location) -> int:
    """Units whose outputs stand, by what each stage leaves behind for one."""
    if name not in ("train", "evaluate"):
        return len(unit_outputs(directory))
    files = directory.files(recursive=True)
    if name == "train":
        statuses = [read_status(file.parent) for file in files if file.name == STATUS_FILE]
        return sum(status is not None and status.state == "finished" for status in statuses)
    return sum(file.name == "task.json" for file in files)
