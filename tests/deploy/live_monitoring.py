"""Prometheus and Alertmanager of Debian on the loopback, with the project's own rules in fast motion."""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from http_server import serving
from local_cluster import free_ports

SPEED = 60
"""Durations of the rules and of Alertmanager's route are divided by this: a minute is a second."""
SCRAPE_INTERVAL, EVALUATION_INTERVAL = "2s", "500ms"
"""Not as fast as the rest: a scrape of Ray may take half a second on a busy machine."""
START_DEADLINE_SECONDS = 30.0
_UNIT_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(?<=\[|\s)(\d+)(ms|s|m|h|d)(?=\]|\s|$)")


class Notice(NamedTuple):
    """One alarm of a notification."""

    alarm: str
    status: str
    labels: Mapping[str, str]


@dataclass
class Monitoring:
    """A running Prometheus with its Alertmanager, and what reached the webhook."""

    prometheus: str
    notices: list[Notice] = field(default_factory=list)

    def now(self) -> dict[str, str]:
        """The last status of each alarm that was ever on."""
        return {notice.alarm: notice.status for notice in self.notices}

    def fired(self, mark: int = 0) -> list[str]:
        """The alarms that fired after the first `mark` notices, in alphabetical order."""
        return sorted({notice.alarm for notice in self.notices[mark:] if notice.status == "firing"})

    def series(self, query: str) -> list[dict[str, Any]]:
        """The answer of Prometheus to a query."""
        url = f"{self.prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  (http, loopback)
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found


class Program(NamedTuple):
    """Where a program of Debian is, and the package that has it."""

    name: str
    package: str

    def path(self) -> str:
        """The program; the test is skipped without it."""
        found = shutil.which(self.name)
        if found is None:
            pytest.skip(f"no {self.name} on PATH: apt-get install {self.package} (`make drills` does, as root)")
        return found


PROMETHEUS = Program("prometheus", "prometheus")
ALERTMANAGER = Program("prometheus-alertmanager", "prometheus-alertmanager")
PROMTOOL = Program("promtool", "prometheus")
AMTOOL = Program("amtool", "prometheus-alertmanager")


@contextmanager
def monitoring(
    folder: Path, prometheus: Mapping[str, Any], rules: Mapping[str, Any], alertmanager: Callable[[str], str]
) -> Iterator[Monitoring]:
    """Prometheus, Alertmanager and a webhook until the block ends.

    Args:
        folder: For configs, data and logs.
        prometheus: A config of Prometheus; its intervals and the places of the rules and of Alertmanager are replaced.
        rules: A rules file of the project.
        alertmanager: Gives the project's config of Alertmanager for the URL of a webhook.
    """
    folder.mkdir()
    notices: list[Notice] = []
    with ExitStack() as stack:
        route = yaml.safe_load(alertmanager(stack.enter_context(_webhook(notices))))
        # Alertmanager's own default is five minutes.
        route["route"] = {"group_interval": "5m", **route["route"]}
        prometheus_address, alertmanager_address = (f"127.0.0.1:{port}" for port in free_ports(2))
        config = {
            **prometheus,
            "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": EVALUATION_INTERVAL},
            "rule_files": [str(folder / "alarms.yml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager_address]}]}]},
        }
        for name, content in (
            ("alarms", in_fast_motion(rules)),
            ("alertmanager", in_fast_motion(route)),
            ("prometheus", config),
        ):
            (folder / f"{name}.yml").write_text(yaml.safe_dump(content))
        for program, address, flags in (
            (ALERTMANAGER, alertmanager_address, ("--cluster.listen-address=", f"--storage.path={folder}/alerts")),
            (
                PROMETHEUS,
                prometheus_address,
                (f"--storage.tsdb.path={folder}/series", "--rules.alert.resend-delay=1s"),
            ),
        ):
            name = program.name.removeprefix("prometheus-")
            command = [program.path(), f"--config.file={folder}/{name}.yml", f"--web.listen-address={address}", *flags]
            stack.enter_context(_running(command, folder / f"{name}.log", f"http://{address}/-/ready"))
        yield Monitoring(f"http://{prometheus_address}", notices)


def in_fast_motion(content: Mapping[str, Any]) -> dict[str, Any]:
    """A config or rules with every duration divided by `SPEED`."""

    def shorter(found: re.Match[str]) -> str:
        return f"{int(found[1]) * _UNIT_MILLISECONDS[found[2]] // SPEED}ms"

    # One line a value, so that no duration is cut in two.
    text = yaml.safe_dump(dict(content), width=10_000)
    made: dict[str, Any] = yaml.safe_load(_DURATION.sub(shorter, text))
    return made


@contextmanager
def _running(command: Sequence[str], log: Path, ready: str) -> Iterator[None]:
    """A program until the block ends; the block begins when it answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(ready, timeout=5).close()  # noqa: S310  (http, loopback)
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _webhook(notices: list[Notice]) -> Iterator[str]:
    """The URL of a receiver that appends every change of an alarm to a list."""
    current: dict[tuple[str, str], str] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for alert in content["alerts"]:
                key, status = (alert["fingerprint"], alert["startsAt"]), alert["status"]
                # A notification repeats the other alarms of its group.
                if current.get(key) != status:
                    current[key] = status
                    notices.append(Notice(alert["labels"]["alertname"], status, alert["labels"]))
            self.send_response(200)
            self.end_headers()

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}/alarms"
