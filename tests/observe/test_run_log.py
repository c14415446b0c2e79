"""The log lines of a run as JSON objects with their context."""

import io
import json
import logging

import pytest
from rich.console import Console

from mode_ray.errors import UsageError
from mode_ray.observe.log import FORMAT_VARIABLE, JsonLines, json_logger, log_format
from mode_ray.observe.progress import Progress
from mode_ray.stages.manifest import UnitRecord
from mode_ray.train.runs.status import TrialStatus


@pytest.fixture
def logged() -> tuple[Progress, io.StringIO]:
    """A progress that logs as JSON, and what it wrote."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    progress = Progress(Console(file=io.StringIO()))
    progress.follow("s3://bucket/run", logger)
    return progress, written


def lines(written: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_names_run_stage_shard_and_expert(logged: tuple[Progress, io.StringIO]) -> None:
    progress, written = logged
    progress.begin("embed", 2)
    progress.unit(UnitRecord(unit="a", source="s3://bucket/a.tar", error='a.tar: "cut"\noff'))
    progress.begin("train", 1)
    progress.trials({"n4/00": TrialStatus(trial="n4/00", state="running", samples=800)})
    about = [{key: line.get(key) for key in ("run", "stage", "shard", "expert")} for line in lines(written)]
    assert {entry["run"] for entry in about} == {"s3://bucket/run"}
    assert about[1] == {"run": "s3://bucket/run", "stage": "embed", "shard": "s3://bucket/a.tar", "expert": None}
    assert (about[-1]["stage"], about[-1]["expert"]) == ("train", "n4/00")
    assert lines(written)[1]["message"] == '[embed] left out: a.tar: "cut"\noff'


def test_a_line_has_time_and_level_and_nothing_empty(logged: tuple[Progress, io.StringIO]) -> None:
    progress, written = logged
    progress.say("50 % done {here}")
    (line,) = lines(written)
    assert set(line) == {"asctime", "levelname", "message", "run"}
    assert line["levelname"] == "INFO"
    assert line["message"] == "50 % done {here}"
    assert line["asctime"].endswith("Z")


def test_the_environment_overrides_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    assert log_format("json") == "json"
    monkeypatch.setenv(FORMAT_VARIABLE, "text")
    assert log_format("json") == "text"
    monkeypatch.setenv(FORMAT_VARIABLE, "xml")
    with pytest.raises(UsageError, match="MODE_RAY_LOG_FORMAT='xml': must be text or json"):
        log_format("text")


def test_the_packages_logger_is_set_up_once() -> None:
    logger = logging.getLogger("mode_ray")
    before = (list(logger.handlers), logger.level, logger.propagate)
    try:
        assert json_logger() is json_logger()
        assert len(logger.handlers) == len(before[0]) + 1
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
