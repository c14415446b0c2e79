"""The run that version 0.1.0 made, unpacked where its config says it is. Tests read it and never write to it."""

import fcntl
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

ARCHIVE = Path(__file__).parent / "fixtures" / "run_0_1_0.tar.xz"
FOLDER = Path("/tmp/mode-ray-0.1.0-run")  # noqa: S108  (the config and the fingerprints hold this path)
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
TEMPLATES = ("a picture of a {}", "{}")


@dataclass(frozen=True)
class HeldOut:
    """The images of the run's evaluation task, with captions and the number of the colour."""

    images: list[Image.Image]
    captions: list[str]
    colours: list[int]


def read_held_out(folder: Path) -> HeldOut:
    """The task's samples, read without mode_ray."""
    table = pq.read_table(folder / "held-out.parquet")
    return HeldOut(
        images=[Image.open(io.BytesIO(data)) for data in table["image"].to_pylist()],
        captions=table["caption"].to_pylist(),
        colours=[COLOURS.index(colour) for colour in table["colour"].to_pylist()],
    )


def unpack_run_of_before() -> Path:
    """Unpack what is missing, one process at a time, and return the folder; its `run` is the run directory."""
    with FOLDER.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tarfile.open(ARCHIVE) as archive:
            missing = [member for member in archive.getmembers() if not _is_there(FOLDER.parent / member.name, member)]
            archive.extractall(FOLDER.parent, missing, filter="data")
        # The archive keeps whole seconds; with them, a run would write its listing again.
        for listed in pq.read_table(FOLDER / "run/shards.parquet").to_pylist():
            os.utime(listed["uri"], (listed["modified_unix_seconds"],) * 2)
    return FOLDER


def _is_there(path: Path, member: tarfile.TarInfo) -> bool:
    return path.is_dir() if member.isdir() else path.is_file() and path.stat().st_size == member.size
