"""The command line with unexpected errors, wrong usage and interrupts, and its help."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mode_ray.cli import main


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


def test_the_error_of_a_worker_is_printed_without_its_stack_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class WrappedError(OSError):
        """An error of a task, wrapped as by Ray."""

        cause = OSError("the disk\nis gone")

    def fail(run: object) -> None:
        raise WrappedError("Traceback (most recent call last) …")

    monkeypatch.setattr("mode_ray.observe.status.status_table", fail)
    assert main(["status", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "mode-ray: the disk is gone\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing command; see --help"),
        (["train"], "Missing option '--config'; see --help"),
        (["trian"], "No such command 'trian'. Did you mean 'train'?; see --help"),
        (["train", "retyr", "--config", "demo"], "override 'retyr': expected KEY=VALUE"),
        (["train", "retry", "--config", "demo"], "Missing argument 'TRIAL'; see --help"),
        (["serve", "add", "one"], "Invalid value for 'EXPERT': "),
        (["run", "--until", "tomorrow", "--config", "demo"], "Invalid value for '--until': 'tomorrow' is not one of"),
        (["status", "run", "[red]"], "Got unexpected extra argument(s) ([red]); see --help"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"mode-ray: {said}")
    assert printed.err.count("\n") == 1


class TestCommandsWithSubcommands:
    """Groups that take overrides and have subcommands."""

    def test_options_of_the_group_may_come_before_and_after_overrides(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", "train.sead=1", "--config", "demo"]) == 2
        assert "override 'train.sead=1': train.sead: unknown key" in capsys.readouterr().err

    def test_a_subcommand_has_its_own_options(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "retry", "--config", "demo", "3", "train.sead=1"]) == 2
        assert "override 'train.sead=1': train.sead: unknown key" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("group", "commands"),
        [
            ("train", ["retry", "add"]),
            ("cluster", ["extend"]),
            ("evaluate", ["rules"]),
            ("serve", ["add", "remove", "replace", "config"]),
        ],
    )
    def test_help_lists_the_options_of_the_group_and_its_subcommands(
        self, group: str, commands: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([group, "--help"]) == 0
        shown = capsys.readouterr().out
        for word in ("KEY=VALUE", *commands):
            assert word in shown


def test_help_shows_the_commands_in_panels_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    panels = [line.split()[1] for line in lines if line.startswith("╭")]
    assert panels == ["Options", "Pipeline", "Results", "Serving", "Clusters"]
    first = [line.split()[1] for line in lines if line.startswith("│ ") and line[2] != " "]
    assert first[first.index("run") :][:7] == ["run", "embed", "cluster", "assign", "features", "train", "evaluate"]


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mode-ray 0.")


def test_completion_knows_commands_options_and_subcommands() -> None:
    def completed(words: str) -> set[str]:
        asked = {"_MODE_RAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))}
        ended = subprocess.run(
            [sys.executable, "-m", "mode_ray"],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return set(ended.stdout.split())

    assert {"run", "train", "serve"} <= completed("mode-ray ")
    assert {"retry", "add"} <= completed("mode-ray train ")


class TestTheEnd:
    """A command is interrupted, or the reader of its output has exited."""

    @pytest.fixture
    def watching(self, tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
        """A command that waits for a run."""
        (tmp_path / "config.yaml").write_text("run: here")
        # Ctrl-C may be ignored where the tests run in the background, and children inherit that.
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import mode_ray.__main__"
        )
        words = ["status", str(tmp_path), "--watch", "--interval-seconds", "0.1"]
        with subprocess.Popen(
            [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            yield process
            process.kill()

    def test_ctrl_c_is_one_line_and_exit_code_130(self, watching: "subprocess.Popen[str]") -> None:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "[embed] has not begun\n"
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=60)
        assert watching.returncode == 130
        assert errors == "mode-ray: interrupted; run the same command again to resume\n"

    def test_a_reader_that_is_gone_is_no_error_message(self) -> None:
        script = f"{sys.executable} -m mode_ray --help | true; exit ${{PIPESTATUS[0]}}"
        ended = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode in (0, 1)  # 0 where the pipe took all before it closed
        assert ended.stderr == ""
