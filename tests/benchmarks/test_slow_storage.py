"""The S3 server of a benchmark: Arrow finds what it wrote, page by page, and every request is late and counted."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

SERVER = Path(__file__).resolve().parents[2] / "benchmarks" / "slow_storage.py"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.communicate(timeout=10)  # it ends with its standard input


@pytest.fixture(scope="module")
def bucket(port: int) -> pyarrow.fs.FileSystem:
    filesystem = pyarrow.fs.S3FileSystem(
        access_key="a",
        secret_key="b",  # noqa: S106 - of our own server
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        region="us-east-1",
        allow_delayed_open=True,
    )
    return pyarrow.fs.SubTreeFileSystem("bench", filesystem)


def control(port: int, **order: object) -> dict[str, int]:
    body = json.dumps(order).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/control", body) as answer:
        requests: dict[str, int] = json.load(answer)
    return requests


@pytest.mark.parametrize("size", [0, 1000, 25_000_000], ids=["empty", "small", "in several uploads"])
def test_what_is_written_is_read(bucket: Any, size: int) -> None:  # noqa: ANN401
    content = bytes(range(256)) * (size // 256)
    with bucket.open_output_stream("a/file") as stream:
        stream.write(content)
    with bucket.open_input_file("a/file") as file:
        assert file.size() == len(content)
        assert file.read() == content
        assert not size or file.read_at(10, 5) == content[5:15]
    bucket.delete_file("a/file")
    assert bucket.get_file_info("a/file").type == pyarrow.fs.FileType.NotFound


def test_a_listing_has_all_pages_and_the_objects_without_content(bucket: Any, port: int) -> None:  # noqa: ANN401
    control(port, sizes={f"many/{number % 3}/{number:05d}": number for number in range(2500)})
    infos = bucket.get_file_info(pyarrow.fs.FileSelector("many", recursive=True))
    files = {info.path: info.size for info in infos if info.is_file}
    assert files == {f"many/{number % 3}/{number:05d}": number for number in range(2500)}
    assert control(port)["LIST many/"] == 3
    folders = bucket.get_file_info(pyarrow.fs.FileSelector("many"))
    assert sorted(info.path for info in folders) == ["many/0", "many/1", "many/2"]


def test_every_request_is_late(bucket: Any, port: int) -> None:  # noqa: ANN401
    control(port, latency_seconds=0.2)
    began = time.monotonic()
    bucket.get_file_info("many/0/00000")
    assert time.monotonic() - began >= 0.2
    assert control(port, latency_seconds=0.0) == {"HEAD": 1}
