"""What `mode-ray run` prints on a Ray of its own, as from a terminal of 80 columns: our lines, and no others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

COMMAND = Path(sys.executable).with_name("mode-ray")
DEADLINE_SECONDS = 600.0
OURS = re.compile(r"\[(embed|cluster|assign)\] |starting Ray on this machine, which takes some seconds$")


pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    """The stages with actor pools, without the variables by which the other tests set Ray up."""
    folder = tmp_path_factory.mktemp("terminal")
    for number in range(4):  # more than one, so that pools may grow
        captions = [
            f"a photo of a {thing}, number {number}" for thing in ("cat", "dog", "tree", "river", "lamp", "boat")
        ]
        pq.write_table(pa.table({"caption": captions}), folder / f"{number}.parquet")
    config = folder / "config.yaml"
    values = {
        "run": str(folder / "run"),
        "captions": {"paths": [f"{folder}/*.parquet"]},
        "encoder": {"kind": "static", "model": "package:wordllama"},
        "cluster": {"fine": {"centers": 4}, "coarse": {"experts": [2]}},
        "train": {"experts": 2, "dense_samples": 1024, "batch_size": 32},
        "ray": {"num_cpus": 2, "object_store_bytes": 100_000_000},
    }
    config.write_text(yaml.safe_dump(values))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [str(COMMAND), "run", "--config", str(config), "--until", "assign"],
        env={**environment, "COLUMNS": "80", "XDG_STATE_HOME": str(folder / "state")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def test_it_succeeds_without_a_word_on_the_error_output(ended: "subprocess.CompletedProcess[str]") -> None:
    assert (ended.returncode, ended.stderr) == (0, "")


def test_every_line_is_ours(ended: "subprocess.CompletedProcess[str]") -> None:
    lines = ended.stdout.splitlines()
    for stage in ("embed", "cluster", "assign"):
        assert any(line.startswith(f"[{stage}] done: ") for line in lines)
    assert [line for line in lines if not OURS.match(line)] == []


def test_lines_fit_unless_they_hold_a_path(ended: "subprocess.CompletedProcess[str]") -> None:
    assert [line for line in ended.stdout.splitlines() if len(line) > 80 and "/" not in line] == []
