"""Prometheus and Alertmanager beside a real Ray: alarms fire, resolve, and stay silent when a job has ended.

Two monitorings look at one cluster: that of `ray up` (cluster_configs/monitoring), and the chart's, for which the test
exports what the KubeRay operator would.
"""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from fault_runs import COMMAND, Invocation, wait_for, write_captions, write_config
from helm_chart import render, required_helm
from http_server import serving
from live_monitoring import ALERTMANAGER, PROMETHEUS, Monitoring, monitoring
from local_cluster import free_ports, local_cluster

from mode_ray.deploy.render import read_values, render_all
from mode_ray.storage import Location

pytestmark = [pytest.mark.drill, pytest.mark.slow]

SILENT_SECONDS = 13.0
"""Longer than `for` of every alarm of a lost head, 5 and 10 minutes in fast motion."""
CLUSTER, JOB = "mode-ray-pipeline-1-x7k2p", "mode-ray-pipeline-1"
NAMESPACE = "mode-ray"
RAY_FOLDER = "/tmp/ray"  # noqa: S108 - of Ray on the head
HEADS = 'ray_node_cpu_utilization{RayNodeType="head"}'
REPORT_SECONDS = 6
"""How often Ray's processes export metrics, 10 by default; longer than our gauges need to be set again.

A gauge that is not set is dropped after twice this time.
"""
KillTree = Callable[["subprocess.Popen[bytes]", float], list[str]]


class Story(NamedTuple):
    """The alarms that reached the webhooks in each part."""

    before_the_head: dict[str, str]
    head_is_up: dict[str, str]
    during_the_job: dict[str, list[str]]
    job_has_ended: dict[str, dict[str, str]]
    vms_without_head: list[str]
    cluster_has_ended: list[str]
    cluster_without_head: list[str]


def test_on_vms_a_missing_head_pages_and_resolves(story: Story) -> None:
    assert story.before_the_head == {"RayHeadDown": "firing"}
    assert story.head_is_up == {"RayHeadDown": "resolved"}
    assert story.vms_without_head == ["RayHeadDown"]


@pytest.mark.parametrize("place", ["vms", "kubernetes"])
def test_a_quarantined_shard_is_announced_until_its_job_ends(story: Story, place: str) -> None:
    assert story.during_the_job[place] == ["ShardsQuarantined"]
    assert set(story.job_has_ended[place].values()) == {"resolved"}


def test_on_kubernetes_nothing_pages_when_a_cluster_has_ended_with_its_job(story: Story) -> None:
    assert story.cluster_has_ended == []


def test_on_kubernetes_a_head_that_is_lost_and_a_failed_job_page(story: Story) -> None:
    assert story.cluster_without_head == ["RayHeadDown", "RayJobFailed"]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, kill_tree: KillTree) -> Iterator[Story]:
    for program in (PROMETHEUS, ALERTMANAGER):
        program.path()
    chart = render(required_helm(), "values.yaml", ["monitoring.enabled=true"])
    folder = tmp_path_factory.mktemp("alarms")
    config = write_run(folder)
    temporary = tempfile.mkdtemp(prefix="mode-ray-", dir="/tmp")
    (metrics_port,) = free_ports(1)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        operator = stack.enter_context(serving(Operator(("127.0.0.1", 0), OperatorHandler)))
        vms = stack.enter_context(of_ray_up(folder / "vms", temporary))
        kubernetes = stack.enter_context(of_the_chart(folder / "kubernetes", chart, metrics_port, operator.url))
        wait_for(lambda: vms.now() == {"RayHeadDown": "firing"})
        before_the_head = vms.now()
        environment = {"RAY_metrics_report_interval_ms": str(REPORT_SECONDS * 1000)}
        options = {"num_cpus": 2, "temp_dir": temporary, "metrics_export_port": metrics_port}
        cluster = stack.enter_context(local_cluster(folder, kill_tree, environment, **options))
        wait_for(lambda: vms.now() == {"RayHeadDown": "resolved"} and kubernetes.series(HEADS))
        operator.clusters = [CLUSTER]
        head_is_up, mark = vms.now(), len(vms.notices)

        words = ["run", "--until", "assign", "--config", str(config), f"ray.address={cluster.gcs}"]
        ended = Invocation([str(COMMAND), *words], folder / "driver.log").ended()
        assert ended.exit_code == 0, ended.printed
        wait_for(lambda: vms.now().get("ShardsQuarantined") == kubernetes.now().get("ShardsQuarantined") == "resolved")
        during_the_job = {"vms": vms.fired(mark), "kubernetes": kubernetes.fired()}
        job_has_ended = {"vms": vms.now(), "kubernetes": kubernetes.now()}

        # KubeRay deletes the cluster of a job that has ended.
        operator.clusters = []
        silent_from, mark = len(kubernetes.notices), len(vms.notices)
        cluster.kill_head()
        time.sleep(SILENT_SECONDS)
        wait_for(lambda: vms.fired(mark))
        cluster_has_ended, mark_of_loss = kubernetes.fired(silent_from), len(kubernetes.notices)

        operator.clusters, operator.failed_jobs = [CLUSTER], [JOB]
        wait_for(lambda: len(kubernetes.fired(mark_of_loss)) == 2)
        yield Story(
            before_the_head,
            head_is_up,
            during_the_job,
            job_has_ended,
            vms.fired(mark),
            cluster_has_ended,
            kubernetes.fired(mark_of_loss),
        )


def write_run(folder: Path) -> Path:
    """A config of a run up to `assign` whose last shard cannot be read, and is allowed to be quarantined."""
    captions = Location(str(folder / "captions"))
    write_captions(captions, 8, 50)
    (captions / "9999.parquet").write_text("garbage")
    pool = {"pool": {"max_actors": 1, "retries_per_unit": 0}}
    limits = {"max_quarantined_units": 1, "max_refused_share": 0.5}
    return write_config(folder / "config.yaml", captions, limits=limits, embed=pool, assign=pool)


def of_ray_up(folder: Path, temporary: str) -> AbstractContextManager[Monitoring]:
    """The monitoring of a `ray up` cluster whose Ray has its files in a folder, as rendered."""
    prometheus = yaml.safe_load(rendered("prometheus.yml").replace(RAY_FOLDER, temporary))
    (job,) = prometheus["scrape_configs"]
    (discovery,) = job["file_sd_configs"]
    discovery["refresh_interval"] = "1s"
    return monitoring(folder, prometheus, yaml.safe_load(rendered("alarms.yml")), alertmanager_config)


def of_the_chart(
    folder: Path, chart: list[dict[str, Any]], metrics_port: int, operator: str
) -> AbstractContextManager[Monitoring]:
    """What the Prometheus operator makes of the chart's PodMonitor and PrometheusRule, with the pod of a head."""
    (monitor,) = (part for part in chart if part["kind"] == "PodMonitor")
    (rule,) = (part for part in chart if part["kind"] == "PrometheusRule")
    endpoint = monitor["spec"]["podMetricsEndpoints"][0]
    pod = {
        "targets": [f"127.0.0.1:{metrics_port}"],
        "labels": {
            "__meta_kubernetes_pod_label_ray_io_cluster": CLUSTER,
            "namespace": NAMESPACE,
            "pod": f"{CLUSTER}-head",
        },
    }
    relabelings = [{snake_case(key): value for key, value in step.items()} for step in endpoint["relabelings"]]
    scrapes = [
        {"job_name": "pods", "static_configs": [pod], "relabel_configs": relabelings},
        {
            "job_name": "kuberay-operator",
            # As in the ServiceMonitor of KubeRay's chart.
            "honor_labels": True,
            "static_configs": [{"targets": [operator], "labels": {"namespace": "kuberay-system"}}],
        },
    ]
    return monitoring(folder, {"scrape_configs": scrapes}, {"groups": rule["spec"]["groups"]}, alertmanager_config)


def alertmanager_config(webhook: str) -> str:
    return rendered("alertmanager.yml", f"alarms.webhook={webhook}")


def rendered(name: str, *overrides: str) -> str:
    """A file of cluster_configs/monitoring."""
    return render_all(read_values(None, overrides))[f"monitoring/{name}"]


class Operator(ThreadingHTTPServer):
    """Exports the metrics of the KubeRay operator: a series for each RayCluster and RayJob that exists."""

    clusters: Sequence[str] = ()
    failed_jobs: Sequence[str] = ()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def page(self) -> str:
        labels = f'namespace="{NAMESPACE}",uid="5f0c"'
        lines = [f'kuberay_cluster_info{{name="{name}",owner_kind="RayJob",{labels}}} 1' for name in self.clusters]
        lines += [
            f'kuberay_job_deployment_status{{name="{name}",deployment_status="Failed",{labels}}} 1'
            for name in self.failed_jobs
        ]
        return "\n".join([*lines, ""])


class OperatorHandler(BaseHTTPRequestHandler):
    server: Operator

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(self.server.page().encode())


def snake_case(name: str) -> str:
    return re.sub("([A-Z])", lambda found: f"_{found[1].lower()}", name)
