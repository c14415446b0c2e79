"""Every command and every client of docs/serving.md, as the page has it."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from serving import picture

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serving.md"
DEADLINE_SECONDS = 60.0


def code_blocks() -> list[str]:
    """The page's indented blocks."""
    blocks: list[list[str]] = [[]]
    for line in PAGE.read_text().splitlines():
        if line.startswith("    "):
            blocks[-1].append(line[4:])
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def curl_commands() -> list[str]:
    """The commands with curl, in the order of the page, with their continued lines."""
    lines = "\n".join(code_blocks()).replace("\\\n", "").splitlines()
    return [line for line in lines if line.startswith("curl ")]


def python_blocks() -> list[str]:
    return [block for block in code_blocks() if block.startswith(("from ", "import "))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder in which a reader of the page works."""
    (tmp_path / "cat.jpg").write_bytes(picture(1, "JPEG"))
    return tmp_path


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # it would refuse the loopback too


def run(command: str, url: str, folder: Path) -> bytes:
    strict = command.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
    done = subprocess.run(
        ["/bin/bash", "-c", strict],
        cwd=folder,
        env={**os.environ, "URL": url, "NO_PROXY": "*"},
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_every_command_works_as_it_is_written(plain_url: str, folder: Path) -> None:
    commands = curl_commands()
    assert len(commands) > 8
    registered = "0" * 32
    answers = {}
    for command in commands:
        answers[command] = run(command.replace("ID", registered), plain_url, folder)
        if "/v1/tasks " in command:
            registered = json.loads(answers[command])["task"]
    classified = [json.loads(found)["results"] for command, found in answers.items() if "/v1/classify" in command]
    assert all(results[0]["labels"] for results in classified)
    assert (folder / "cat.f16").stat().st_size % 2 == 0


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: str(block).split()[1])
def test_every_client_works_as_it_is_written(
    block: str, plain_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(block.split()[1])
    monkeypatch.chdir(folder)
    lines = block.splitlines()
    lines[-1] = f"found = {lines[-1]}"
    names = {"URL": plain_url, "TOKEN": "none"}
    exec("\n".join(lines), names)  # noqa: S102  (our own documentation)
    assert len(rows_of(names["found"]))


def rows_of(found: object) -> Sequence[object]:
    """Labels of Hugging Face's client, or the numbers of an embedding."""
    data = getattr(found, "data", found)
    assert isinstance(data, list)
    assert all(np.isfinite(getattr(entry, "score", 0.0)) for entry in data)
    return data
