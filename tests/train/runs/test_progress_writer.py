"""The progress file: the newest figures, every two seconds at most, and no reason to end a run."""

import json
from pathlib import Path

import pytest

from mode_ray.storage import Location
from mode_ray.train.runs.progress_writer import INTERVAL_SECONDS, ProgressWriter


def test_it_is_due_every_interval(tmp_path: Path) -> None:
    writer = ProgressWriter(Location.parse(str(tmp_path / "progress.json")), now=100.0)
    assert not writer.is_due(100.0 + INTERVAL_SECONDS - 0.1)
    assert writer.is_due(100.0 + INTERVAL_SECONDS)
    writer.write({"samples": 8.0}, 102.0)
    writer.wait()
    assert not writer.is_due(103.0)
    assert writer.is_due(104.0)


def test_the_newest_figures_are_in_the_file(tmp_path: Path) -> None:
    writer = ProgressWriter(Location.parse(str(tmp_path / "progress.json")), now=0.0)
    for samples in (8.0, 16.0):
        writer.write({"samples": samples}, samples)
    writer.wait()
    assert json.loads((tmp_path / "progress.json").read_text()) == {"samples": 16.0}


def test_figures_that_cannot_be_written_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    writer = ProgressWriter(Location.parse(str(tmp_path / "file" / "progress.json")), now=0.0)
    writer.write({"samples": 8.0}, 1.0)
    writer.wait()
    assert "progress.json was not written: " in caplog.text
