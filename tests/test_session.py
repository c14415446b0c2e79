"""Sessions of a program that sets none of Ray's variables: protected, and gone without a trace."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest

from mode_ray.errors import WorkerError
from mode_ray.stages.session import start_errors

DRIVER = Path(__file__).with_name("session_driver.py")
DEADLINE_SECONDS = 300.0


class Session(TypedDict):
    token: str | None
    mode: str
    listeners: list[tuple[str, str, int, bool]]


class Found(TypedDict):
    sessions: list[Session]
    changed: list[str]


def run_sessions(folder: Path, **variables: str) -> Found:
    """What the driver prints, with a home directory of its own and no variable of Ray's but the given ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(DRIVER)],
        env=kept | {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")} | variables,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: Found = json.loads(done.stdout)
    return found


@pytest.mark.drill
class TestDefault:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("home")

    @pytest.fixture(scope="class")
    def found(self, folder: Path) -> Found:
        return run_sessions(folder)

    def test_every_port_is_on_the_loopback_interface(self, found: Found) -> None:
        for session in found["sessions"]:
            assert {"gcs_server", "raylet"} <= {process for process, *_ in session["listeners"]}
            assert [entry for entry in session["listeners"] if not entry[-1]] == []

    def test_each_session_has_a_token_of_its_own(self, found: Found) -> None:
        assert [session["mode"] for session in found["sessions"]] == ["token", "token"]
        assert len({session["token"] for session in found["sessions"]}) == 2

    def test_the_environment_is_as_before(self, found: Found) -> None:
        assert found["changed"] == []

    def test_no_token_is_left(self, found: Found, folder: Path) -> None:
        assert found["sessions"]
        assert not (folder / ".ray").exists()
        assert [file for file in (folder / "state").rglob("*") if file.is_file()] == []


@pytest.mark.drill
def test_a_token_of_the_user_is_respected(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0123456789" * 4)
    found = run_sessions(tmp_path, RAY_AUTH_TOKEN_PATH=str(own))
    assert {session["token"] for session in found["sessions"]} == {own.read_text()}
    assert {session["mode"] for session in found["sessions"]} == {"token"}
    assert not (tmp_path / "state").exists()


def test_a_start_that_takes_too_long_is_explained() -> None:
    said = "Ray did not start within 30 seconds: this machine is busy, or short of memory"
    with pytest.raises(WorkerError, match=said), start_errors():
        raise RuntimeError("The current node timed out during startup. This could happen because …")


def test_other_errors_of_a_start_are_raised_as_they_are() -> None:
    with pytest.raises(ConnectionError, match="no route"), start_errors():
        raise ConnectionError("no route to host")
