"""Ranges of S3 objects take one GET each, and no HEAD."""

from typing import Any

import pytest
from botocore.loaders import JSONFileLoader
from fault_proxy import Fault, fault_proxy

from mode_ray.errors import DataError
from mode_ray.pairs.s3_ranges import S3Ranges
from mode_ray.storage import Location

CONTENT = bytes(range(256)) * 10


class Requests:
    """A schedule of the proxy that notes requests, and gives the first ones faults."""

    def __init__(self, *faults: Fault) -> None:
        self.seen: list[str] = []
        self._faults = list(faults)

    def __call__(self, method: str, _path: str, _earlier: int) -> Fault | None:
        self.seen.append(method)
        return self._faults.pop(0) if self._faults else None


@pytest.fixture
def file(bucket: str) -> Location:
    """An object with a name that a URL has to quote."""
    location = Location.parse(f"{bucket}/a folder/ü+1.tar")
    location.write_bytes(CONTENT)
    return location


def test_each_range_is_one_request(file: Location, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests()
    with fault_proxy(s3_server, requests) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        ranges = S3Ranges(connections=2)
        assert ranges.read(file, 5, 300) == CONTENT[5:300]
        assert ranges.read(file, 300, 301) == CONTENT[300:301]
    assert requests.seen == ["GET", "GET"]


def test_behind_the_end_there_are_no_bytes(file: Location) -> None:
    ranges = S3Ranges(connections=2)
    assert ranges.read(file, 2500, 9999) == CONTENT[2500:]
    assert ranges.read(file, 3000, 4000) == b""


@pytest.mark.parametrize("fault", ["503", "cut", "half"])
def test_a_fault_that_passes_is_none(
    file: Location, s3_server: str, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    requests = Requests(fault, fault)
    with fault_proxy(s3_server, requests) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert S3Ranges(connections=2).read(file, 0, 100) == CONTENT[:100]
    assert requests.seen == ["GET"] * 3


def test_an_object_that_is_gone_is_named(file: Location) -> None:
    file.delete()
    with pytest.raises(DataError, match=r"1\.tar: no such file; it was removed since it was assigned"):
        S3Ranges(connections=2).read(file, 0, 10)


def test_a_process_reads_botocores_descriptions_once(file: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    assert S3Ranges(connections=2).read(file, 0, 10) == CONTENT[:10]
    read: list[str] = []
    load_file = JSONFileLoader.load_file

    def counted(loader: JSONFileLoader, path: str) -> Any:  # noqa: ANN401 - any JSON
        read.append(path)
        return load_file(loader, path)

    monkeypatch.setattr(JSONFileLoader, "load_file", counted)
    assert S3Ranges(connections=2).read(file, 0, 10) == CONTENT[:10]
    assert read == []
