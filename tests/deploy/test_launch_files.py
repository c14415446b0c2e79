"""Every rendered launch file is valid under the schema of its reader, which refuses unknown fields."""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import botocore.validate
import jsonschema
import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.deploy.render import missing_starters, read_values, render_all, stale_files
from mode_ray.deploy.values import ClusterValues
from mode_ray.storage import Location

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "cluster_configs"
VALUES = str(CONFIGS / "values.yaml")
# Each of them takes other branches of the templates.
OTHERS = (
    "bucket=gs://pairs/mode",
    "aws.image_id=ami-0123456789abcdef0",
    "kubernetes.environment_secret=bucket-keys",
    'kubernetes.spot_label={"eks.amazonaws.com/capacityType": SPOT}',
    "kubernetes.gpu_node_label={}",
    "pools.cpu={fewest: 2, most: 7}",
    "serve={run: run2, experts: 2, token_hashes: [00ff]}",
)
STAGES = ("embed", "cluster", "assign", "train", "evaluate", "pipeline")
KUBERAY = ("kuberay/cluster.yaml", "kuberay/service.yaml", *(f"kuberay/jobs/{stage}.yaml" for stage in STAGES))
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
        assert set(starters) == {"values.yaml", "serve.yaml"}
        assert stale_files(starters, Location(str(CONFIGS))) == [], "change mode_ray/deploy/starters, and copy it here"

    def test_nothing_else_lies_where_they_are(self) -> None:
        rendered = set(render_all(read_values(VALUES)))
        folders = ("kuberay", "monitoring")
        there = {str(file.relative_to(CONFIGS)) for name in folders for file in (CONFIGS / name).rglob("*.y*ml")}
        assert there <= rendered


def test_every_file_is_yaml(files: dict[str, str]) -> None:
    for name, text in files.items():
        assert all(isinstance(part, dict) for part in load_all(text)), name


def test_no_file_holds_a_token_or_key(files: dict[str, str]) -> None:
    for name, text in files.items():
        assert not re.search(r"RAY_AUTH_TOKEN\b|SECRET_ACCESS_KEY|password", text), name


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

    def test_gpu_machines_get_the_gpu_image(self, files: dict[str, str], values: ClusterValues) -> None:
        for name in ("aws.yaml", "gcp.yaml"):
            config = load(files[name])
            types = config["available_node_types"]
            assert config["docker"]["image"] == values.image.cpu
            assert {types[pool]["docker"]["worker_image"] for pool in ("gpu_spot", "gpu_on_demand")} == {
                values.image.gpu
            }


class TestKubeRay:
    @pytest.mark.parametrize("name", KUBERAY)
    def test_the_operator_knows_every_field(self, files: dict[str, str], name: str) -> None:
        manifest = load(files[name])
        jsonschema.Draft7Validator(crd_schema(manifest["kind"])).validate(manifest)

    def test_an_unknown_field_would_be_found(self, files: dict[str, str]) -> None:
        manifest = load(files["kuberay/cluster.yaml"])
        manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["memory"] = "1Gi"
        with pytest.raises(jsonschema.ValidationError, match="'memory' was unexpected"):
            jsonschema.Draft7Validator(crd_schema("RayCluster")).validate(manifest)

    @pytest.mark.parametrize("name", KUBERAY)
    def test_every_pod_may_run_where_it_must_and_only_with_a_token(self, files: dict[str, str], name: str) -> None:
        cluster = cluster_of(load(files[name]))
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        assert groups["gpu-spot"]["priority"] > groups["gpu-on-demand"]["priority"]
        for group in (cluster["headGroupSpec"], *groups.values()):
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            assert pod["restartPolicy"] == "Never"
            assert pod["securityContext"]["runAsNonRoot"]
            assert {"readinessProbe", "livenessProbe"} <= set(container)
            assert {mount["name"] for mount in container["volumeMounts"]} == {part["name"] for part in pod["volumes"]}
            memory = next(part["emptyDir"] for part in pod["volumes"] if part["name"] == "shared-memory")
            assert memory["medium"] == "Memory"
            selected, tolerated = set(pod.get("nodeSelector", {})), {one["key"] for one in pod.get("tolerations", [])}
            if group["labels"]["ray.io/market-type"] == "spot":
                assert selected & tolerated, "spot nodes are chosen by a label, and tainted with it"
            if "nvidia.com/gpu" in container["resources"]["limits"]:
                assert "nvidia.com/gpu" in tolerated

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_job_runs_the_script_of_its_stage_again_until_it_is_done(
        self, files: dict[str, str], stage: str, values: ClusterValues
    ) -> None:
        spec = load(files[f"kuberay/jobs/{stage}.yaml"])["spec"]
        assert spec["entrypoint"] == f"python /opt/mode_ray/jobs/{stage}.py --config {values.bucket}/config.yaml"
        assert (REPOSITORY / f"jobs/{stage}.py").is_file()
        assert spec["backoffLimit"] > 0
        assert spec["shutdownAfterJobFinishes"]

    def test_serve_accepts_the_service(self, files: dict[str, str], values: ClusterValues) -> None:
        text = load(files["kuberay/service.yaml"])["spec"]["serveConfigV2"]
        schema = ServeDeploySchema.model_validate(load(text))
        names = [f"expert-{number}" for number in range(values.serve.experts)]
        assert [application.name for application in schema.applications] == [*names, "router"]

    def test_all_lie_in_one_namespace_that_exists(self, files: dict[str, str], values: ClusterValues) -> None:
        namespace, account = load_all(files["kuberay/base.yaml"])
        assert (namespace["kind"], account["kind"]) == ("Namespace", "ServiceAccount")
        assert namespace["metadata"]["name"] == account["metadata"]["namespace"] == values.kubernetes.namespace
        for name in KUBERAY:
            manifest = load(files[name])
            assert manifest["metadata"]["namespace"] == values.kubernetes.namespace
            pods = [cluster_of(manifest)["headGroupSpec"], *cluster_of(manifest)["workerGroupSpecs"]]
            assert {pod["template"]["spec"]["serviceAccountName"] for pod in pods} == {account["metadata"]["name"]}


class TestTheRunsConfig:
    @pytest.fixture
    def config(self, files: dict[str, str], tmp_path: Path) -> RunConfig:
        (tmp_path / "run.yaml").write_text(files["run.yaml"])
        return load_config(str(tmp_path / "run.yaml"))

    def test_every_label_it_selects_is_on_a_pool_of_every_cluster(
        self, files: dict[str, str], config: RunConfig
    ) -> None:
        placement = config.train.placement
        for cluster, labels in labels_by_cluster(files).items():
            for selector in (placement.label_selector, placement.launcher_label_selector):
                assert selector
                assert any(selector.items() <= of_pool.items() for of_pool in labels), (cluster, selector)

    def test_both_gpu_pools_are_selected_alike(self, files: dict[str, str], config: RunConfig) -> None:
        for cluster, labels in labels_by_cluster(files).items():
            chosen = [one for one in labels if config.train.placement.label_selector.items() <= one.items()]
            assert {one["ray.io/market-type"] for one in chosen} == {"spot", "on-demand"}, cluster

    def test_a_runs_workers_fit_on_one_machine(self, values: ClusterValues, config: RunConfig) -> None:
        placement = config.train.placement
        for machine in (values.aws.gpu, values.gcp.gpu, values.kubernetes.gpu):
            assert placement.workers_per_run <= machine.gpus
            assert placement.workers_per_run * placement.cpus_per_worker <= machine.cpus


class TestMonitoring:
    def test_the_alarms_are_the_same_for_both_kinds_of_prometheus(self, files: dict[str, str]) -> None:
        alone = load(files["monitoring/alarms.yml"])
        operated = next(
            part for part in load_all(files["kuberay/monitoring.yaml"]) if part["kind"] == "PrometheusRule"
        )
        assert operated["spec"] == alone

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
        for service in load(files["monitoring/compose.yaml"])["services"].values():
            assert f"{RAY_FOLDER}:{RAY_FOLDER}:ro" in service["volumes"]
        (scraped,) = load(files["monitoring/prometheus.yml"])["scrape_configs"]
        (listed,) = scraped["file_sd_configs"][0]["files"]
        assert listed == f"{RAY_FOLDER}/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"

    @pytest.mark.parametrize("name", KUBERAY)
    def test_the_operator_scrapes_nodes_and_autoscaler(self, files: dict[str, str], name: str) -> None:
        monitor = next(part for part in load_all(files["kuberay/monitoring.yaml"]) if part["kind"] == "PodMonitor")
        scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        cluster = cluster_of(load(files[name]))
        head, *workers = (
            {port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]}
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        )
        assert {port: head[port] for port in scraped} == {"metrics": 8080, "as-metrics": AUTOSCALER_METRIC_PORT}
        assert all("metrics" in ports for ports in workers)

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


def labels_by_cluster(files: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    """The labels of every pool."""
    found = {}
    for name in ("aws.yaml", "gcp.yaml"):
        found[name] = [kind["labels"] for kind in load(files[name])["available_node_types"].values()]
    for name in KUBERAY:
        cluster = cluster_of(load(files[name]))
        found[name] = [group["labels"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return found


def cluster_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return cluster


@cache
def crd_schema(kind: str) -> dict[str, Any]:
    """KubeRay's schema of a kind, in which unknown fields are errors; the test is skipped without it."""
    named = os.environ.get("MODE_RAY_KUBERAY_CRDS")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "kuberay-crds"
    file = folder / f"ray.io_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"no KubeRay schemas at {folder}: set MODE_RAY_KUBERAY_CRDS to a folder with its config/crd/bases")
    versions = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema: dict[str, Any] = next(one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1")
    schema["properties"]["metadata"] = {"type": "object"}
    return closed(schema)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A Kubernetes schema as JSON Schema, without unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    made = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "properties" in schema:
        made["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = closed(schema[key])
    return made


def ray_sources_with_metrics() -> Iterator[Path]:
    import ray

    package = Path(ray.__file__).parent
    yield package / "autoscaler/_private/prom_metrics.py"
    yield package / "dashboard/modules/reporter/reporter_agent.py"
    yield from (package / "serve/_private").glob("*.py")


def test_the_image_runs_without_root_and_holds_neither_tests_nor_history() -> None:
    assert "USER 1000:1000" in (CONFIGS / "Dockerfile").read_text().splitlines()
    assert {".git/", ".venv/", "/tests/"} <= set((REPOSITORY / ".dockerignore").read_text().split())
