"""What the command line does with errors that are nobody's sentence, and what a driver leaves to its workers."""

import subprocess
import sys
from pathlib import Path

import pytest

from mode_ray.cli import _joined, _parser, main

DRIVER = "mode_ray.cli, mode_ray.pipeline, mode_ray.plan.from_run, mode_ray.plan.report"
FOR_WORKERS = ("torch", "numba", "faiss", "transformers", "open_clip")


def test_storage_that_cannot_be_read_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("run: here")
    (tmp_path / "embeddings/manifest.json").mkdir(parents=True)
    assert main(["status", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mode-ray: ")
    assert f"{tmp_path}/embeddings/manifest.json" in said
    assert said.count("\n") == 1


def test_a_worker_s_error_is_said_without_its_stack_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class WrappedError(OSError):
        """As Ray wraps what a task raised."""

        cause = OSError("the disk\nis gone")

    def fail(run: object) -> None:
        raise WrappedError("Traceback (most recent call last) …")

    monkeypatch.setattr("mode_ray.observe.status.status_table", fail)
    assert main(["status", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "mode-ray: the disk is gone\n"


def test_a_driver_loads_nothing_that_only_its_workers_need() -> None:
    script = f"import sys, {DRIVER}; print(*[name for name in {FOR_WORKERS} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, ""), ended.stderr[-2000:]


def test_two_words_may_be_one_command_and_the_first_alone_another() -> None:
    retry = _parser().parse_args(_joined(["train", "retry", "--config", "my.yaml", "3", "train.seed=1"]))
    assert (retry.command, retry.trial, retry.overrides) == ("train retry", "3", ["train.seed=1"])
    train = _parser().parse_args(_joined(["train", "--config", "my.yaml", "train.seed=1"]))
    assert (train.command, train.overrides) == ("train", ["train.seed=1"])
