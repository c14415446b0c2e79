"""What the fault drills share: captions of a Python package in many small shards, invocations, what outputs stand."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import emoji
import pyarrow as pa
import yaml

from mode_ray.stages.manifest import Manifest, UnitRecord, read_manifest, unit_outputs
from mode_ray.storage import Location

COMMAND = Path(sys.executable).with_name("mode-ray")
# As `mode-ray embed`, `cluster` and `assign` one after the other, with one start of Ray.
UP_TO_ASSIGN = """
import sys
from rich.console import Console
from mode_ray.cli.pipeline import run_stages
from mode_ray.config.load import load_config
run_stages(load_config(sys.argv[1], sys.argv[2:]), ("embed", "cluster", "assign"), Console())
"""
DIRECTORIES = {"embed": "embeddings", "assign": "assignments"}
DEADLINE_SECONDS = 240.0
EMPTY_EVERY = 40
T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """How an invocation ended."""

    exit_code: int
    printed: str


@dataclass(frozen=True)
class Standing:
    """An output that stands: which file it is. Done again it would be another one, even with the same bytes."""

    inode: int
    modified_nanoseconds: int


class Invocation:
    """One command in a process group of its own, with a Ray of its own unless the environment names one."""

    def __init__(self, arguments: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                arguments,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**kept, **(environment or {})},
                start_new_session=True,
            )

    def printed(self) -> str:
        """What it said so far."""
        return self._log.read_text()

    def ended(self) -> Ended:
        """Leave it alone until it ends."""
        try:
            return Ended(self.process.wait(DEADLINE_SECONDS), self.printed())
        finally:
            if self.process.poll() is None:
                self.process.kill()


def wait_for(find: Callable[[], T], running: Invocation | None = None, seconds: float = DEADLINE_SECONDS) -> T:
    """Poll until something is found, such as a process to kill; an invocation that is given must run until then."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        if running is not None:
            assert running.process.poll() is None, f"it ended before that:\n{running.printed()}"
        assert time.monotonic() < deadline, running and running.printed()
        time.sleep(0.05)
    return found


def write_captions(folder: Location, units: int, captions_per_unit: int) -> int:
    """Write the English names of emoji in small parquet shards, some rows empty; returns the number of rows."""
    texts = [
        names["en"].strip(":").replace("_", " ") for _, names in sorted(emoji.EMOJI_DATA.items()) if "en" in names
    ]
    texts = [text if number % EMPTY_EVERY else "" for number, text in enumerate(texts)]
    rows = units * captions_per_unit
    assert rows <= len(texts)
    for unit in range(units):
        part = texts[unit * captions_per_unit : (unit + 1) * captions_per_unit]
        (folder / f"{unit:04d}.parquet").write_table(pa.table({"caption": part}))
    return rows


def write_config(file: Path, captions: Location, **changes: Any) -> Path:  # noqa: ANN401 - sections of a config
    """A config up to `assign` with the static encoder."""
    values = {
        "run": str(file.parent / "run"),
        "captions": {"paths": [captions.uri]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "cluster": {"fine": {"centers": 16}, "coarse": {"experts": [2]}, "placement": {"threads": 1}},
        "train": {"experts": 2, "dense_samples": 1024, "batch_size": 32},
        "ray": {"num_cpus": 2, "object_store_bytes": 200_000_000},
        **changes,
    }
    file.write_text(yaml.safe_dump(values))
    return file


def stage_command(stage: str, config: Path, run: Location) -> list[str]:
    """The command line of one stage."""
    return [str(COMMAND), stage, "--config", str(config), f"run={run}"]


def up_to_assign(config: Path, run: Location) -> list[str]:
    """The command line of embed, cluster and assign in one process."""
    return [sys.executable, "-c", UP_TO_ASSIGN, str(config), f"run={run}"]


def outputs(run: Path, stage: str) -> dict[str, Standing]:
    """The outputs of a local run's stage that stand, by unit."""
    files = [Path(file.path) for file in unit_outputs(Location(str(run / DIRECTORIES[stage])))]
    return {file.stem: Standing(file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def temporaries(run: Path) -> list[str]:
    """Files that a writer left half-written."""
    return sorted(file.name for file in run.rglob(".*.tmp"))


def manifest_of(run: Location, stage: str) -> Manifest:
    """The manifest of a finished stage."""
    manifest = read_manifest(run / DIRECTORIES[stage])
    assert manifest is not None, f"{stage} is not done"
    return manifest


def all_counted(records: list[UnitRecord] | Manifest, rows: int) -> bool:
    """Whether every row of the input is either written or refused."""
    if isinstance(records, Manifest):
        return records.rows_in == rows == records.rows_out + sum(records.refused.values())
    done = [record for record in records if record.error is None]
    return (
        sum(record.rows_in for record in done)
        == rows
        == sum(record.rows_out + sum(record.refused.values()) for record in done)
    )


def same_rows(run: Location, other: Location, stage: str) -> bool:
    """Whether two runs of the same input have the same outputs, row for row."""
    pairs = [sorted(unit_outputs(where / DIRECTORIES[stage])) for where in (run, other)]
    return [file.name for file in pairs[0]] == [file.name for file in pairs[1]] and all(
        mine.read_table().replace_schema_metadata(None).equals(theirs.read_table().replace_schema_metadata(None))
        for mine, theirs in zip(*pairs, strict=True)
    )
