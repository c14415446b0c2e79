"""One driver at a time: live drivers keep the lease, dead ones lose it, and a driver that lost it ends."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mode_ray.errors import TrainingError
from mode_ray.run_directory import LEASE_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.lease import PATIENCE_SECONDS, Lease


@pytest.fixture
def directory(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "experts"))


def silent(_: str) -> None:
    """Ignore the line."""


def fast_lease(directory: Location, say: Callable[[str], None] = silent) -> Lease:
    return Lease(directory, say, beat_seconds=0.05, expiry_seconds=0.5)


def content(directory: Location) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory / LEASE_FILE).read_text())
    return found


def test_it_is_renewed_while_it_is_held_and_gone_afterwards(directory: Location) -> None:
    with fast_lease(directory) as lease:
        first = content(directory)["beats"]
        time.sleep(0.3)
        assert content(directory)["beats"] != first
        lease.check()
    assert not (directory / LEASE_FILE).exists()


def test_without_one_before_there_is_nothing_to_wait_for(directory: Location) -> None:
    said: list[str] = []
    with fast_lease(directory, said.append):
        pass
    with fast_lease(directory, said.append):
        pass
    assert said == []


def test_the_second_of_two_living_drivers_is_sent_away(directory: Location) -> None:
    with fast_lease(directory) as lease:
        with pytest.raises(TrainingError, match=r"another driver \(process \d+ on .+\) is training this run"):
            fast_lease(directory).__enter__()
        lease.check()
        assert content(directory)["driver"] == lease._driver


def test_that_of_a_dead_driver_is_taken_over_after_a_while(directory: Location) -> None:
    (directory / LEASE_FILE).write_text(
        json.dumps({"driver": "dead", "host": "spot-7", "process": "41", "beats": "9"})
    )
    said: list[str] = []
    began = time.monotonic()
    with fast_lease(directory, said.append) as lease:
        assert time.monotonic() - began >= 0.5
        assert content(directory)["driver"] == lease._driver
    assert len(said) == 1
    assert "process 41 on spot-7" in said[0]


def test_a_driver_that_was_overtaken_ends_and_leaves_the_lease_to_the_other(directory: Location) -> None:
    with fast_lease(directory) as lease:
        other = {"driver": "other", "host": "spot-7", "process": "41", "beats": "1"}
        (directory / LEASE_FILE).write_text(json.dumps(other))
        time.sleep(0.3)
        with pytest.raises(TrainingError, match="process 41 on spot-7"):
            lease.check()
    assert content(directory) == other


class TestStorageTrouble:
    """The lease's file is replaced by a folder: every read and write of it fails, as with storage that is down."""

    def trouble(self, directory: Location) -> Path:
        file = Path((directory / LEASE_FILE).path)
        file.unlink(missing_ok=True)
        file.mkdir()
        return file

    def test_trouble_longer_than_the_expiry_ends_nothing_and_is_reported_once(self, directory: Location) -> None:
        said: list[str] = []
        with Lease(directory, said.append, beat_seconds=0.02, expiry_seconds=0.1, patience_seconds=60.0) as lease:
            blocked = self.trouble(directory)
            time.sleep(0.5)
            lease.check()
            blocked.rmdir()
            time.sleep(0.2)
            lease.check()
            assert content(directory)["driver"] == lease._driver
        assert [line for line in said if "cannot be renewed" in line] == said
        assert len(said) == 1
        assert "training continues for up to 60 s" in said[0]

    def test_trouble_longer_than_the_patience_ends_the_driver(self, directory: Location) -> None:
        with Lease(directory, silent, beat_seconds=0.02, expiry_seconds=0.1, patience_seconds=0.2) as lease:
            blocked = self.trouble(directory)
            time.sleep(0.6)
            with pytest.raises(TrainingError, match="cannot be renewed"):
                lease.check()
            blocked.rmdir()

    def test_a_driver_that_was_overtaken_during_the_trouble_ends(self, directory: Location) -> None:
        other = {"driver": "other", "host": "spot-7", "process": "41", "beats": "1"}
        with Lease(directory, silent, beat_seconds=0.02, expiry_seconds=0.1, patience_seconds=60.0) as lease:
            blocked = self.trouble(directory)
            time.sleep(0.1)
            blocked.rmdir()
            with pytest.raises(TrainingError, match="process 41 on spot-7"):  # noqa: PT012  (it is repeated)
                for _ in range(100):  # a beat that began before this write may replace it
                    (directory / LEASE_FILE).write_text(json.dumps(other))
                    time.sleep(0.1)
                    lease.check()

    def test_by_default_two_minutes_of_trouble_end_nothing(self) -> None:
        assert PATIENCE_SECONDS >= 120.0
