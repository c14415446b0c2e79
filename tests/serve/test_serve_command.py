import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from mode_ray.cli import main

PROGRAM = "import sys; from mode_ray.cli import main; sys.exit(main())"


class TestServe:
    def test_a_directory_that_is_no_run_is_one_sentence(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["serve", str(tmp_path), "--in-process"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert (
            line
            == f"mode-ray: {tmp_path}: no run here (no config.yaml); give the directory that the config calls `run`"
        )

    def test_a_run_that_is_not_trained_is_one_sentence(
        self, served_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.yaml").write_bytes((served_folder / "config.yaml").read_bytes())
        assert main(["serve", str(tmp_path), "--in-process"]) == 2
        assert "the cluster stage is not done: run `mode-ray cluster` first" in capsys.readouterr().err

    def test_overrides_may_stand_behind_an_option(
        self, served_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["serve", str(served_folder), "--in-process", "serve.port=no"]) == 2
        assert "serve.port: " in capsys.readouterr().err
        assert main(["serve", str(served_folder), "--in-process", "--quickly"]) == 2
        assert capsys.readouterr().err == "mode-ray: No such option: --quickly; see --help\n"

    def test_a_taken_port_is_one_sentence(self, served_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert main(["serve", str(served_folder), "--in-process", "--port", str(port)]) == 2
        assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err

    def test_it_prints_its_address_answers_there_and_ends_quietly(self, served_folder: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-c", PROGRAM, "serve", str(served_folder), "--in-process", "--port", "0"]
        with (tmp_path / "errors").open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ)
            assert process.stdout is not None
            url = next(line.split()[1] for line in process.stdout if line.startswith("page:"))
            assert url.startswith("http://127.0.0.1:")
            assert httpx.get(f"{url}v1/ready", timeout=60).json()["ready"]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            process.stdout.close()
        assert "Traceback" not in (tmp_path / "errors").read_text()
