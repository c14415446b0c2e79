"""The token file of a local cluster: its permissions, how it is found, and when the user's own choice applies."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mode_ray.errors import UsageError
from mode_ray.stages.access_token import find_token_file, new_token_file, publish, token_headers

DASHBOARD = "http://127.0.0.1:8265"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where Ray's own default token would be
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


class TestFile:
    def test_only_the_user_can_read_it(self, environment: dict[str, str]) -> None:
        with new_token_file(environment) as file:
            assert file is not None
            assert len(file.read_text()) == 64
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    def test_every_cluster_gets_another_token(self, environment: dict[str, str]) -> None:
        tokens = set()
        for _ in range(2):
            with new_token_file(environment) as file:
                assert file is not None
                tokens.add(file.read_text())
        assert len(tokens) == 2

    def test_nothing_is_left_at_the_end(self, environment: dict[str, str]) -> None:
        with new_token_file(environment) as file:
            assert file is not None
            publish(file, "127.0.0.1:8265")
        assert list(file.parent.iterdir()) == []

    def test_the_token_of_a_killed_process_is_not_used_and_deleted_by_the_next(
        self, environment: dict[str, str]
    ) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        with new_token_file(environment) as file:
            assert file is not None
            leftover = file.with_name(f"{ended.pid}.token")
        leftover.write_text("0" * 64)
        publish(leftover, "127.0.0.1:8265")
        assert find_token_file(DASHBOARD, environment) is None
        with new_token_file(environment) as file:
            assert file is not None
            assert list(file.parent.iterdir()) == [file]

    def test_a_folder_that_cannot_be_written_is_named_with_the_fix(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        state = tmp_path / "file" / "state"
        with (
            pytest.raises(UsageError, match=rf"cannot write the access token .*{state}.*set XDG_STATE_HOME"),
            new_token_file({"XDG_STATE_HOME": str(state)}),
        ):
            pass


class TestClient:
    def test_it_finds_the_token_by_the_dashboards_address(self, environment: dict[str, str]) -> None:
        with new_token_file(environment) as file:
            assert file is not None
            assert token_headers(DASHBOARD, environment) == {}, "the cluster has no dashboard yet"
            publish(file, "127.0.0.1:8265")
            expected = {"Authorization": f"Bearer {file.read_text()}"}
            assert token_headers(DASHBOARD, environment) == expected
            assert token_headers("http://localhost:8265/", environment) == expected
            assert token_headers("http://127.0.0.1:8266", environment) == {}
            assert token_headers("http://10.0.0.1:8265", environment) == {}

    def test_a_file_that_the_user_names_comes_first(self, environment: dict[str, str], tmp_path: Path) -> None:
        own = tmp_path / "own"
        own.write_text("abc\n")
        with new_token_file(environment) as file:
            assert file is not None
            publish(file, "127.0.0.1:8265")
            assert token_headers(DASHBOARD, environment, own) == {"Authorization": "Bearer abc"}


class TestUsersChoice:
    @pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", None], ids=str)
    def test_with_mode_token_a_client_sends_the_users_token(
        self, environment: dict[str, str], tmp_path: Path, variable: str | None
    ) -> None:
        file = tmp_path / "token" if variable else tmp_path / "home" / ".ray" / "auth_token"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("abc\n")
        named = {variable: "abc" if variable == "RAY_AUTH_TOKEN" else str(file)} if variable else {}
        sent = token_headers("http://10.0.0.1:8265", {**environment, **named, "RAY_AUTH_MODE": "token"})
        assert sent == {"Authorization": "Bearer abc"}

    def test_a_token_file_that_is_missing_is_named(self, environment: dict[str, str]) -> None:
        asked = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/such"}
        with pytest.raises(UsageError, match="RAY_AUTH_TOKEN_PATH=/no/such: cannot be read"):
            token_headers(DASHBOARD, asked)

    @pytest.mark.parametrize(
        "own",
        [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "abc"}, {"RAY_AUTH_TOKEN_PATH": "/somewhere"}],
        ids=["mode", "token", "path"],
    )
    def test_a_variable_is_respected_by_the_cluster_and_by_clients(
        self, environment: dict[str, str], own: dict[str, str]
    ) -> None:
        with new_token_file(environment | own) as file:
            assert file is None
        with new_token_file(environment) as file:
            assert file is not None
            publish(file, "127.0.0.1:8265")
            assert token_headers(DASHBOARD, environment | own) == {}

    def test_mode_token_uses_rays_own_file_if_there_is_one(self, environment: dict[str, str]) -> None:
        asked = environment | {"RAY_AUTH_MODE": "token"}
        with new_token_file(asked) as file:
            assert file is not None, "else Ray would write a token into the home directory"
        own = Path(os.environ["HOME"]) / ".ray" / "auth_token"
        own.parent.mkdir(parents=True)
        own.write_text("abc")
        with new_token_file(asked) as file:
            assert file is None
