"""Stored cosines are memory-mapped from the file, or from a copy that is deleted automatically."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mode_ray.evaluate.measure.measurements import TaskSummary, load_cosines, save_array
from mode_ray.run_directory import LABELS_FILE, ROUTING_FILE, TASK_SUMMARY, cosine_file
from mode_ray.storage import Location

COSINES_IL = np.arange(6, dtype=np.float32).reshape(3, 2)


def store(directory: Location) -> None:
    summary = TaskSummary(
        task="t", models=("n2/00",), logit_scales={}, images=3, texts=("a", "b"), skipped={}, examples={}
    )
    save_array(cosine_file(directory, "n2/00"), COSINES_IL)
    save_array(directory / LABELS_FILE, np.zeros(3, np.int64))
    save_array(directory / ROUTING_FILE, np.eye(2, dtype=np.float32))
    (directory / TASK_SUMMARY).write_text(json.dumps(asdict(summary)))


def test_cosines_of_a_remote_run_are_mapped_too_and_leave_nothing_behind(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Location.parse(f"{bucket}/tasks/t")
    store(directory)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = load_cosines(directory).cosines["n2/00"]
    assert isinstance(found, np.memmap)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(found, COSINES_IL)


def test_a_task_that_was_measured_without_a_model_does_not_cover_it(tmp_path: Path) -> None:
    directory = Location.parse(str(tmp_path))
    store(directory)
    summary = load_cosines(directory).summary
    assert summary.covers(["n2/00"])
    assert summary.covers([])
    assert not summary.covers(["n2/00", "n2/01"])


def test_a_report_keeps_the_task_without_its_cosines(tmp_path: Path) -> None:
    directory = Location.parse(str(tmp_path))
    store(directory)
    measured = load_cosines(directory)
    kept = measured.without_cosines()
    assert kept.cosines == {}
    assert kept.summary == measured.summary
    np.testing.assert_array_equal(kept.routing_texts_ld, measured.routing_texts_ld)
