"""Every rendered launch file is valid under the schema of its reader, which refuses unknown fields."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import botocore.validate
import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.autoscaler._private.util import prepare_config, validate_config

from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.deploy.render import missing_starters, read_values, render_all, stale_files
from mode_ray.deploy.values import SPOT_TIMEOUT_SECONDS, ClusterValues
from mode_ray.storage import Location

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "cluster_configs"
VALUES = str(CONFIGS / "values.yaml")
# Each of them takes other branches of the templates.
OTHERS = (
    "bucket=gs://pairs/mode",
    "aws.gpu_image_id=ami-00000000000000002",
    "pools.cpu={fewest: 2, most: 7}",
    "training={run: run2, experts: 2}",
    "alarms.webhook=https://hooks.example.com/mode",
)
RAY_UP = ("aws.yaml", "gcp.yaml", "single-node.yaml")
RAY_FOLDER = "/tmp/ray"  # noqa: S108 - Ray's own, on every node
POOLS = {"head": "head", "cpu_spot": "cpu", "gpu_spot": "gpu", "gpu_on_demand": "gpu"}


@pytest.fixture(scope="module", params=[(), OTHERS], ids=["committed values", "other values"])
def values(request: pytest.FixtureRequest) -> ClusterValues:
    return read_values(VALUES, request.param)


@pytest.fixture(scope="module")
def files(values: ClusterValues) -> dict[str, str]:
    return render_all(values)


class TestTheCommittedFiles:
    def test_they_are_what_the_committed_values_render(self) -> None:
        stale = stale_files(render_all(read_values(VALUES)), Location(str(CONFIGS)))
        assert stale == [], "run `mode-ray cluster-config`"

    def test_the_example_files_are_those_of_the_package(self, tmp_path: Path) -> None:
        starters = missing_starters(Location(str(tmp_path)))
        assert set(starters) == {"values.yaml", "serve.yaml", "slurm.sh", "skypilot.yaml", "karpenter.yaml"}
        assert stale_files(starters, Location(str(CONFIGS))) == [], "change mode_ray/deploy/starters, and copy it here"

    def test_karpenters_node_pools_have_machines_for_every_pod_of_the_chart(self) -> None:
        node_pools = [
            part for part in load_all((CONFIGS / "karpenter.yaml").read_text()) if part["kind"] == "NodePool"
        ]
        values = yaml.safe_load((CONFIGS / "chart/values-eks.yaml").read_text())
        pods = [values["head"], *(pool for pool in values["pools"].values() if pool)]
        assert len(pods) == 5
        for pod in pods:
            (node_pool,) = (one for one in node_pools if ("-gpu" in one["metadata"]["name"]) == bool(pod.get("gpus")))
            spec = node_pool["spec"]["template"]["spec"]
            allowed = {entry["key"]: entry["values"] for entry in spec["requirements"]}
            assert pod["nodeSelector"]["karpenter.sh/capacity-type"] in allowed["karpenter.sh/capacity-type"]
            tolerated = {entry["key"] for entry in pod.get("tolerations", [])}
            assert {taint["key"] for taint in spec.get("taints", [])} <= tolerated

    def test_nothing_else_lies_where_they_are(self) -> None:
        rendered = set(render_all(read_values(VALUES)))
        folders = ("chart", "monitoring")
        there = {str(file.relative_to(CONFIGS)) for name in folders for file in (CONFIGS / name).rglob("*.y*ml")}
        assert there <= rendered


def test_every_file_is_yaml(files: dict[str, str]) -> None:
    for name, text in files.items():
        if name.startswith("chart/templates/"):
            continue  # Go templates: test_chart renders them
        assert all(isinstance(part, dict) for part in load_all(text)), name


def test_no_file_holds_a_token_or_key(files: dict[str, str]) -> None:
    for name, text in files.items():
        assert not re.search(r"RAY_AUTH_TOKEN\b|SECRET_ACCESS_KEY=|password: *[^\s,}]{9}", text), name


class TestRayUp:
    @pytest.mark.parametrize("name", RAY_UP)
    def test_ray_accepts_it(self, files: dict[str, str], name: str) -> None:
        validate_config(prepare_config(load(files[name])))

    @pytest.mark.parametrize("name", RAY_UP)
    def test_a_token_is_asked_for_on_every_node(self, files: dict[str, str], name: str) -> None:
        config = load(files[name])
        assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
        (mounted,) = config["file_mounts"]
        assert f"--env RAY_AUTH_TOKEN_PATH={mounted}" in config["docker"]["run_options"]

    @pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
    def test_the_head_takes_no_work_and_spot_goes_before_on_demand(self, files: dict[str, str], name: str) -> None:
        types = load(files[name])["available_node_types"]
        assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
        spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
        assert spot["priority"] > on_demand["priority"]
        # Only of types that fit alike does the priority decide.
        assert spot["resources"] == on_demand["resources"]
        assert {name: kind["labels"]["mode-ray/pool"] for name, kind in types.items()} == POOLS

    def test_ec2_accepts_the_machines(self, files: dict[str, str]) -> None:
        shape = boto3.client("ec2", region_name="us-west-2").meta.service_model.operation_model("RunInstances")
        for name, kind in load(files["aws.yaml"])["available_node_types"].items():
            request = {"MinCount": 1, "MaxCount": 1, **kind["node_config"]}
            report = botocore.validate.ParamValidator().validate(request, shape.input_shape)
            unknown = set(request) - set(shape.input_shape.members)
            assert not report.has_errors(), (name, report.generate_report())
            assert not unknown, (name, unknown)

    @pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
    def test_every_pool_has_an_image_and_gpu_machines_check_their_driver(
        self, files: dict[str, str], name: str, values: ClusterValues
    ) -> None:
        types = load(files[name])["available_node_types"]
        if name == "aws.yaml":
            images = {pool: kind["node_config"]["ImageId"] for pool, kind in types.items()}
            assert images["head"] == images["cpu_spot"] == values.aws.cpu_image_id
            assert images["gpu_spot"] == images["gpu_on_demand"] == values.aws.gpu_image_id
        for pool in ("gpu_spot", "gpu_on_demand"):
            assert "-ge 580" in types[pool]["initialization_commands"][-1]

    @pytest.mark.parametrize(("driver", "code"), [("580.65.06", 0), ("570.86.15", 1), ("", 1)])
    def test_a_machine_with_an_old_driver_ends_with_the_reason(
        self, files: dict[str, str], driver: str, code: int, tmp_path: Path
    ) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {driver}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        command = load(files["aws.yaml"])["available_node_types"]["gpu_spot"]["initialization_commands"][-1]
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        ended = subprocess.run(
            ["/bin/bash", "-c", command], env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == code
        assert ("older than 580: choose another image" in ended.stderr) == bool(code)

    @pytest.mark.parametrize("cloud", ["aws", "gcp"])
    def test_every_worker_watches_for_the_notice_of_its_cloud(self, files: dict[str, str], cloud: str) -> None:
        config = load(files[f"{cloud}.yaml"])
        watcher = config["worker_start_ray_commands"][-1]
        assert f"python -m mode_ray.deploy.spot_watcher --cloud={cloud}" in watcher
        head = " ".join(config["head_start_ray_commands"])
        assert f"RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S={SPOT_TIMEOUT_SECONDS};" in head

    def test_gpu_machines_get_the_gpu_image(self, files: dict[str, str], values: ClusterValues) -> None:
        for name in ("aws.yaml", "gcp.yaml"):
            config = load(files[name])
            types = config["available_node_types"]
            assert config["docker"]["image"] == values.image.cpu
            assert {types[pool]["docker"]["worker_image"] for pool in ("gpu_spot", "gpu_on_demand")} == {
                values.image.gpu
            }


class TestTheRunsConfig:
    @pytest.fixture(params=["aws", "gcp"])
    def cloud(self, request: pytest.FixtureRequest) -> str:
        cloud: str = request.param
        return cloud

    @pytest.fixture
    def config(self, files: dict[str, str], cloud: str, tmp_path: Path) -> RunConfig:
        (tmp_path / "run.yaml").write_text(files[f"run-{cloud}.yaml"])
        return load_config(str(tmp_path / "run.yaml"))

    def test_every_label_it_selects_is_on_a_pool(self, files: dict[str, str], config: RunConfig, cloud: str) -> None:
        labels = [kind["labels"] for kind in load(files[f"{cloud}.yaml"])["available_node_types"].values()]
        placement = config.train.placement
        pool = config.assign.pool.label_selector
        for selector in (placement.label_selector, placement.launcher_label_selector, pool):
            assert selector
            assert any(selector.items() <= of_pool.items() for of_pool in labels), selector
        chosen = [one for one in labels if placement.label_selector.items() <= one.items()]
        assert {one["ray.io/market-type"] for one in chosen} == {"spot", "on-demand"}

    def test_the_actors_fill_the_machines_of_this_cloud(
        self, config: RunConfig, values: ClusterValues, cloud: str
    ) -> None:
        cpus = values.pools.cpu.most * getattr(values, cloud).cpu.cpus
        assert config.embed.pool.max_actors == config.assign.pool.max_actors == cpus

    def test_a_runs_workers_fit_on_one_machine(self, values: ClusterValues, config: RunConfig, cloud: str) -> None:
        placement, machine = config.train.placement, getattr(values, cloud).gpu
        assert placement.workers_per_run <= machine.gpus
        assert placement.workers_per_run * placement.cpus_per_worker <= machine.cpus


class TestMonitoring:
    def test_the_alarms_of_the_chart_are_those_of_a_head_without_that_of_the_head(self, files: dict[str, str]) -> None:
        alone, chart = load(files["monitoring/alarms.yml"]), load(files["chart/alarms.yml"])
        assert alone["groups"][:-1] == chart["groups"]
        assert [rule["alert"] for rule in alone["groups"][-1]["rules"]] == ["RayHeadDown"]

    def test_alarms_go_to_the_webhook(self, files: dict[str, str]) -> None:
        (receiver,) = load(files["monitoring/alertmanager.yml"])["receivers"]
        (target,) = load(files["monitoring/prometheus.yml"])["alerting"]["alertmanagers"]
        assert receiver.get("webhook_configs", []) in ([], [{"url": "https://hooks.example.com/mode"}])
        assert target["static_configs"] == [{"targets": ["127.0.0.1:9093"]}]

    def test_every_metric_of_rays_in_an_alarm_is_exported(self, files: dict[str, str]) -> None:
        sources = "".join(file.read_text() for file in ray_sources_with_metrics())
        named = {name for name in metrics_in_alarms(files) if not name.startswith("ray_mode_")}
        assert len(named) >= 6
        for name in named:
            plain = re.sub(r"^(ray|autoscaler)_", "", name)
            # Prometheus gets counters with `_total` behind their names.
            assert any(f'"{one}"' in sources for one in (plain, plain.removesuffix("_total"))), name

    def test_every_metric_of_ours_in_an_alarm_is_exported(self, files: dict[str, str]) -> None:
        own = [REPOSITORY / "mode_ray/observe/metrics.py", REPOSITORY / "mode_ray/serve/service/metrics.py"]
        if not all(file.is_file() for file in own):
            pytest.skip("mode_ray has no metrics.py, or no serve/metrics.py")
        sources = "".join(file.read_text() for file in own)
        for name in metrics_in_alarms(files):
            if name.startswith("ray_mode_"):
                assert f'"{name.removeprefix("ray_").removesuffix("_total")}"' in sources, name

    def test_every_alarm_is_in_the_runbook(self, files: dict[str, str]) -> None:
        runbook = (REPOSITORY / "docs/operations.md").read_text()
        for rule in re.findall(r"alert: (\w+)", files["monitoring/alarms.yml"]):
            assert f"`{rule}`" in runbook, rule

    @pytest.mark.parametrize("name", RAY_UP)
    def test_prometheus_beside_rays_container_sees_its_list_of_nodes(self, files: dict[str, str], name: str) -> None:
        config = load(files[name])
        assert f"-v {RAY_FOLDER}:{RAY_FOLDER}" in config["docker"]["run_options"]
        made = f"install -d -m 1777 {RAY_FOLDER}"
        assert made in config["initialization_commands"], "the container's user writes to it"
        services = load(files["monitoring/compose.yaml"])["services"]
        for service in (services["prometheus"], services["grafana"]):
            assert f"{RAY_FOLDER}:{RAY_FOLDER}:ro" in service["volumes"]
        (scraped,) = load(files["monitoring/prometheus.yml"])["scrape_configs"]
        (listed,) = scraped["file_sd_configs"][0]["files"]
        assert listed == f"{RAY_FOLDER}/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"

    def test_what_the_containers_mount_exists(self, files: dict[str, str]) -> None:
        services = load(files["monitoring/compose.yaml"])["services"]
        for service in services.values():
            for volume in service["volumes"]:
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (CONFIGS / "monitoring" / source).exists(), source


def metrics_in_alarms(files: Mapping[str, str]) -> set[str]:
    rules = [rule for group in load(files["monitoring/alarms.yml"])["groups"] for rule in group["rules"]]
    return {name for rule in rules for name in re.findall(r"\b(?:ray|autoscaler)_\w+", rule["expr"])}


def load(text: str) -> dict[str, Any]:
    """One YAML document; libyaml's reader is ten times as fast."""
    (document,) = load_all(text)
    return document


def load_all(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, yaml.CSafeLoader))


def ray_sources_with_metrics() -> Iterator[Path]:
    import ray

    package = Path(ray.__file__).parent
    yield package / "autoscaler/_private/prom_metrics.py"
    yield package / "dashboard/modules/reporter/reporter_agent.py"
    yield from (package / "serve/_private").glob("*.py")


def test_the_image_runs_without_root_and_holds_neither_tests_nor_history() -> None:
    assert "USER 1000:1000" in (CONFIGS / "Dockerfile").read_text().splitlines()
    assert {".git/", ".venv/", "/tests/"} <= set((REPOSITORY / ".dockerignore").read_text().split())
