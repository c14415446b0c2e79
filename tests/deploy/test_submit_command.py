"""`mode-ray submit` reports mistakes before anything is sent to a cluster."""

from pathlib import Path

import pytest
import yaml

from mode_ray.cli import main
from mode_ray.deploy.job_checks import job_variables
from mode_ray.deploy.submission import LogCursor
from mode_ray.errors import UsageError

# Nothing listens there.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a config."""
    # Set, so that it is put back: the command sets it for Ray's client.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", NOWHERE)
    values = {"run": "s3://bucket/run", "captions": {"paths": ["s3://bucket/in"]}, "train": {"dense_samples": 1}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def submit(folder: Path, *words: str) -> int:
    return main(["submit", "--working-dir", str(folder), *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--config", "absent.yaml"], "absent.yaml: not in"),
        (["run", "--config", "my.yaml", "cluster.fine.center=1"], "cluster.fine.center: unknown key"),
        (["--env", "NOT_SET_HERE", "run", "--config", "my.yaml"], "--env NOT_SET_HERE: is not set here"),
        (["submit", "run", "--config", "my.yaml"], "submit cannot run as a job"),
        (["demo"], "demo --directory demo-run: is inside the job's copy of this folder"),
        ([], "submit: name a command"),
        (["--follow", "a-job", "run", "--config", "my.yaml"], "submit: name a command"),
        (["--token-file", "/absent/token", "run", "--config", "my.yaml"], "--token-file: /absent/token: no such file"),
    ],
)
def test_a_mistake_is_said_at_once(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(folder, *words) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_command_is_refused_by_its_own_parser(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(folder, "run", "--until", "tomorrow", "--config", "my.yaml") == 2
    assert "'--until': 'tomorrow' is not one of 'embed', 'cluster'" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_named_with_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(folder, "train", "retry", "--config", "my.yaml", "3") == 2
    assert f"{NOWHERE}: no cluster answers; forward its dashboard first" in capsys.readouterr().err


class TestVariables:
    def test_a_value_is_given_or_taken_from_here(self) -> None:
        made = job_variables(["A=1=2", "B", "C="], {"B": "here"})
        assert made == {"A": "1=2", "B": "here", "C": ""}

    def test_a_name_that_is_none_is_refused(self) -> None:
        with pytest.raises(UsageError, match="expected NAME=VALUE"):
            job_variables(["not a name=1"], {})


class TestTheLogOfALostConnection:
    def test_what_was_written_is_not_written_again(self) -> None:
        cursor = LogCursor()
        first = [cursor.unseen(text) for text in ("ab\n", "cd\n")]
        # Ray's server begins every connection at the start, with other pieces.
        cursor.reconnected()
        second = [cursor.unseen(text) for text in ("ab\nc", "d\nef\n", "g\n")]
        assert (first, second) == (["ab\n", "cd\n"], ["", "ef\n", "g\n"])

    def test_a_connection_that_breaks_early_loses_nothing(self) -> None:
        cursor = LogCursor()
        cursor.unseen("abcdef")
        cursor.reconnected()
        assert cursor.unseen("abc") == ""
        cursor.reconnected()
        assert cursor.unseen("abcdefgh") == "gh"
