"""`mode-ray doctor`: checks this machine, the nodes of a cluster, a bucket, pods of Kubernetes and an AWS account."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mode_ray.config.run import RayConfig
from mode_ray.deploy.account import examine_account
from mode_ray.deploy.findings import (
    Finding,
    check_bucket,
    check_clock,
    check_disk,
    check_gpus,
    check_memory,
    check_pods,
    check_versions,
)
from mode_ray.deploy.machine import MachineFacts, machine_facts
from mode_ray.deploy.values import ClusterValues
from mode_ray.errors import UsageError
from mode_ray.storage import Location

_ANSWER_SECONDS = 120.0
_KUBECTL_SECONDS = 60.0
_COLOURS = {"ok": "green", "failed": "red", "unknown": "yellow"}


@dataclass(frozen=True)
class Checkup:
    """What is checked.

    Attributes:
        bucket: A directory that every machine must be able to use; None to leave it out.
        pairs: Pairs of the data, if known.
        cluster: Join the cluster of `ray`, and check its nodes too.
        ray: How to join it.
        namespace: Namespace of Kubernetes whose pods are checked with kubectl.
        values: Values of a `ray up` cluster, with which the AWS account is compared.
    """

    bucket: Location | None = None
    pairs: int | None = None
    cluster: bool = False
    ray: RayConfig = field(default_factory=RayConfig)
    namespace: str | None = None
    values: ClusterValues | None = None


@dataclass(frozen=True)
class MachineReport:
    """The facts of one machine, and its access to the bucket."""

    facts: MachineFacts
    bucket: Finding | None


def examine(checkup: Checkup) -> list[tuple[str, Finding]]:
    """All findings with the machine that each concerns; `all` for comparisons."""
    here = report_machine(checkup.bucket)
    findings = [("here", finding) for finding in _of_machine(here, checkup.pairs, expected_gpus=0.0)]
    machines = [here.facts]
    if checkup.cluster:
        for name, outcome in _nodes(checkup):
            findings += [(name, finding) for finding in outcome[1]]
            machines += [outcome[0]] if outcome[0] else []
    findings += [("all", finding) for finding in check_versions(machines)]
    if checkup.namespace is not None:
        pods = _kubectl("get", "pods", "--namespace", checkup.namespace)
        findings += [("pods", finding) for finding in check_pods(pods, _kubectl("get", "nodes"))]
    if checkup.values is not None:
        findings += [("account", finding) for finding in examine_account(checkup.values)]
    return findings


def table(findings: Sequence[tuple[str, Finding]]) -> RenderableType:
    """The findings as a table of at most 80 columns, and below it a sentence for each fix."""
    made = Table(box=None, pad_edge=False, width=80)
    for name, width in (("where", 15), ("check", 16), ("", 7)):
        made.add_column(name, width=width, no_wrap=True)
    made.add_column("found", overflow="fold")
    for where, finding in findings:
        made.add_row(Text(where), finding.check, Text(finding.state, _COLOURS[finding.state]), Text(finding.found))
    # Many machines need the same fix.
    places: dict[tuple[str, str], list[str]] = {}
    for where, finding in findings:
        if finding.fix:
            places.setdefault((finding.check, finding.fix), []).append(where)
    fixes = [Text(f"{', '.join(dict.fromkeys(where))}: {check}: {fix}") for (check, fix), where in places.items()]
    return Group(made, *([Text("")] if fixes else []), *fixes)


def report_machine(bucket: Location | None) -> MachineReport:
    """Gather the facts of the machine that this runs on, and try the bucket."""
    # Several machines probe at once, so the name is unique.
    probe = f"doctor-{socket.gethostname()}-{os.getpid()}"
    return MachineReport(machine_facts(), None if bucket is None else check_bucket(bucket, probe))


def _of_machine(report: MachineReport, pairs: int | None, expected_gpus: float) -> list[Finding]:
    facts = report.facts
    findings = [*check_gpus(facts, expected_gpus), *check_memory(facts), check_disk(facts, pairs)]
    return [*findings, report.bucket] if report.bucket else findings


def _nodes(checkup: Checkup) -> list[tuple[str, tuple[MachineFacts | None, list[Finding]]]]:
    """Name, facts and findings of every node of the cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from mode_ray.stages.session import ray_session

    def task(bucket: Location | None) -> tuple[MachineReport, float]:
        began = time.time()
        return report_machine(bucket), began

    outcomes: list[tuple[str, tuple[MachineFacts | None, list[Finding]]]] = []
    with ray_session(checkup.ray):
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        remote = ray.remote(num_cpus=0, max_retries=0)(task)
        for node in nodes:  # one after another: their clocks are compared with this one's
            name = str(node["NodeManagerHostname"])
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked = time.time()
            reference = remote.options(scheduling_strategy=strategy).remote(checkup.bucket)
            try:
                report, began = ray.get(reference, timeout=_ANSWER_SECONDS)
            except ray.exceptions.RayError as error:
                fix = "see the node's log in Ray's dashboard: it runs no tasks"
                outcomes.append((name, (None, [Finding("node", "failed", type(error).__name__, fix)])))
                continue
            # The clock was read between the request and the answer.
            offset = min(0.0, began - asked) + max(0.0, began - time.time())
            expected = float(node["Resources"].get("GPU", 0.0))
            findings = [*_of_machine(report, checkup.pairs, expected), check_clock(offset)]
            outcomes.append((name, (report.facts, findings)))
    return outcomes


def _kubectl(*words: str) -> dict[str, object]:
    tool = shutil.which("kubectl")
    if tool is None:
        raise UsageError("doctor --namespace needs kubectl, which is not installed")
    ended = subprocess.run(
        [tool, *words, "--output", "json"], capture_output=True, text=True, timeout=_KUBECTL_SECONDS, check=False
    )
    if ended.returncode != 0:
        raise UsageError(f"kubectl {' '.join(words)}: {' '.join(ended.stderr.split())}")
    answer: dict[str, object] = json.loads(ended.stdout)
    return answer
