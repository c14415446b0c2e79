"""A run that was opened, as tasks of Ray take it."""

import pickle
from pathlib import Path

import pytest

from mode_ray.config.run import RunConfig
from mode_ray.stages.run import Run


def test_its_directory_stays_where_it_was_when_a_worker_has_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(RunConfig.model_validate({"run": "mine/run", "captions": {"paths": ["x.tar"]}}), ())
    sent = pickle.dumps(run)
    monkeypatch.chdir("/")
    there = pickle.loads(sent)  # noqa: S301  (a test's own object)
    assert there.directory.path == str(tmp_path / "mine/run")
    assert there.clusters.path == str(tmp_path / "mine/run/clusters")
