"""The lease that lets only one driver train a run: a file that its holder rewrites every few seconds.

A lease is alive if its file changes while another driver watches it, so clocks of different machines do not matter. A
driver that was suspended until its lease expired and was taken over finds the other driver's id in the file, and ends.
A driver that cannot read or write the file keeps training for two minutes: storage that fails for everyone lets nobody
take over. If another driver does take over meanwhile, the first one ends at its next successful read.
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
PATIENCE_SECONDS = 120.0
_READS_PER_BEAT = 4


class Lease:
    """The right to train in a directory, held within a `with` block.

    Args:
        directory: Directory of the train stage.
        say: Takes a line of text before waiting for an old lease to expire, and when the lease cannot be renewed.
        beat_seconds: Time between renewals.
        expiry_seconds: A lease that was not renewed for this time is taken over.
        patience_seconds: A driver that could not renew its lease for this time ends.

    Raises:
        TrainingError: On entering, if another driver holds the lease.
    """

    def __init__(
        self,
        directory: Location,
        say: Callable[[str], None],
        beat_seconds: float = BEAT_SECONDS,
        expiry_seconds: float = EXPIRY_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._file = directory / LEASE_FILE
        self._say = say
        self._beat_seconds = beat_seconds
        self._expiry_seconds = expiry_seconds
        self._patience_seconds = patience_seconds
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
        """Check that the lease is still held.

        Raises:
            TrainingError: Another driver took it over, or it could not be renewed for `patience_seconds`.
        """
        if self._lost is not None:
            raise TrainingError(self._lost)

    def _wait_for_the_last_holder(self) -> None:
        """Wait until an existing lease expires.

        Raises:
            TrainingError: It was renewed: its holder is alive.
        """
        first = self._read()
        if first is None:
            return
        self._say(
            f"an earlier driver ({_holder(first)}) left its lease: taking it over unless it is renewed "
            f"within {self._expiry_seconds:.0f} s"
        )
        deadline = time.monotonic() + self._expiry_seconds
        while time.monotonic() < deadline:
            time.sleep(self._beat_seconds / _READS_PER_BEAT)
            now = self._read()
            if now is None:
                return
            if now != first:
                raise TrainingError(
                    f"{self._file}: another driver ({_holder(now)}) is training this run; wait for it, or stop it"
                )

    def _beat_until_ended(self) -> None:
        renewed, is_failing = time.monotonic(), False
        while not self._ended.wait(self._beat_seconds):
            try:
                found = self._read()
                if found is not None and found["driver"] != self._driver:
                    self._lost = f"{self._file}: another driver ({_holder(found)}) took over"
                    return
                self._write()
                renewed, is_failing = time.monotonic(), False
            except (OSError, ValueError) as error:
                reason = f"{self._file}: cannot be renewed ({' '.join(str(error).split())})"
                if time.monotonic() - renewed > self._patience_seconds:
                    self._lost = reason
                    return
                if not is_failing:
                    self._say(f"{reason}; training continues for up to {self._patience_seconds:.0f} s without it")
                    is_failing = True

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
    """The holder of an existing lease.

    Attributes:
        name: Process and host.
        renewed_unix_seconds: Time of the last renewal, by the storage's clock.
    """

    name: str
    renewed_unix_seconds: float


def lease_holder(directory: Location) -> LeaseHolder | None:
    """The holder of the lease of a stage's directory, or None."""
    found = (directory / LEASE_FILE).entry()
    if found is None:
        return None
    try:
        content = json.loads(found.location.read_text())
    except FileNotFoundError:  # released since
        return None
    return LeaseHolder(_holder(content), found.modified_unix_seconds)


def _holder(content: dict[str, str]) -> str:
    return f"process {content['process']} on {content['host']}"
