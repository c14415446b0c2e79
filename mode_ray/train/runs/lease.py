"""One driver at a time trains a run: a file in the stage's directory that its holder writes anew every few seconds.

A lease is alive if its file changes while one watches, whatever the clocks of two machines say. A driver that was
stopped for longer than that, and overtaken, finds another's name in the file and ends.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mode_ray.errors import TrainingError
from mode_ray.run_directory import LEASE_FILE
from mode_ray.storage import Location

BEAT_SECONDS = 2.0
EXPIRY_SECONDS = 10.0
_LOOK_SECONDS = 0.5


class Lease:
    """The right to train in a directory, held within a `with` block.

    Args:
        directory: The stage's.
        say: Told when there is something to wait for.

    Raises:
        TrainingError: On entering: another driver is at work there.
    """

    def __init__(self, directory: Location, say: Callable[[str], None]) -> None:
        self._file = directory / LEASE_FILE
        self._say = say
        self._driver = secrets.token_hex(8)
        self._beats = 0
        self._ended = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._beat_until_ended, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._wait_for_the_last_holder()
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            self._file.delete()

    def check(self) -> None:
        """Make sure that the lease is still held.

        Raises:
            TrainingError: It could not be renewed in time, or another driver took it over.
        """
        if self._lost is not None:
            raise TrainingError(self._lost)

    def _wait_for_the_last_holder(self) -> None:
        """Watch the lease that stands, if any: renewed, it is alive; else it has expired.

        Raises:
            TrainingError: It is alive.
        """
        first = self._read()
        if first is None:
            return
        left = f"a driver before ({_holder(first)}) left its lease"
        self._say(f"{left}: taken over after {EXPIRY_SECONDS:.0f} s without a sign of life")
        deadline = time.monotonic() + EXPIRY_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            now = self._read()
            if now is None:
                return
            if now != first:
                raise TrainingError(
                    f"{self._file}: another driver ({_holder(now)}) is training this run; wait for its end, or stop it"
                )

    def _beat_until_ended(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(BEAT_SECONDS):
            try:
                found = self._read()
                if found is not None and found["driver"] != self._driver:
                    self._lost = f"{self._file}: another driver ({_holder(found)}) took over"
                    return
                self._write()
                renewed = time.monotonic()
            except (OSError, ValueError) as error:
                if time.monotonic() - renewed > EXPIRY_SECONDS:
                    self._lost = f"{self._file}: cannot be renewed ({' '.join(str(error).split())})"
                    return

    def _read(self) -> dict[str, str] | None:
        try:
            content: dict[str, str] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return None
        return content

    def _write(self) -> None:
        self._beats += 1
        content = {
            "driver": self._driver,
            "host": socket.gethostname(),
            "process": str(os.getpid()),
            "beats": str(self._beats),
        }
        self._file.write_text(json.dumps(content))


@dataclass(frozen=True)
class LeaseHolder:
    """Who holds a lease that stands.

    Attributes:
        name: Process and host, in words.
        renewed_unix_seconds: When it was last renewed, by the storage's clock.
    """

    name: str
    renewed_unix_seconds: float


def lease_holder(directory: Location) -> LeaseHolder | None:
    """Who holds the lease of a stage's directory, or None."""
    found = (directory / LEASE_FILE).glob_entries()
    if not found:
        return None
    try:
        content = json.loads(found[0].location.read_text())
    except FileNotFoundError:  # given back since
        return None
    return LeaseHolder(_holder(content), found[0].modified_unix_seconds)


def _holder(content: dict[str, str]) -> str:
    return f"process {content['process']} on {content['host']}"
