"""The Helm chart: every object that it renders is valid for its reader, and every pod can start where it has to."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helm_chart import CHART, render, required_helm
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.serve.schema import ServeDeploySchema

from mode_ray.config.load import load_config
from mode_ray.config.serve import ServeConfig
from mode_ray.deploy.values import SPOT_TIMEOUT_SECONDS
from mode_ray.serve.ray.deployment_file import serve_document

REPOSITORY = CHART.parents[1]
(IMAGE_RAY,) = re.findall(r"^ray(?:\[.*\])?==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
VALUES = ("values.yaml", "values-gke.yaml", "values-eks.yaml")
EVERYTHING = (
    "job.enabled=true",
    "service.enabled=true",
    "service.redis.address=redis:6379",
    "service.redis.passwordSecret=redis",
    "networkPolicy.enabled=true",
    "networkPolicy.clients[0].podSelector.matchLabels.app=web",
    "ingress.enabled=true",
    "gateway.enabled=true",
    "monitoring.enabled=true",
    "logs.enabled=true",
    "queueName=experts",
    "priorityClassName=training",
    "environmentSecret=keys",
    "imagePullSecrets[0].name=registry",
    "extraEnv[0].name=HF_HOME",
    "extraEnv[0].value=/tmp/hub",
    "service.tokenHashes[0]=00ff",
)
# Memory in GiB and CPUs of the machines that the values files name for each pool.
MACHINES = {
    "values-gke.yaml": {"cpu": (64, 16), "gpu": (192, 48)},  # n2-standard-16, g2-standard-48
    "values-eks.yaml": {"cpu": (64, 32), "gpu": (384, 48)},  # c7i.8xlarge, g6e.12xlarge
}
Objects = list[dict[str, Any]]


@pytest.fixture(scope="module")
def helm() -> str:
    return required_helm()


@pytest.fixture(scope="module", params=VALUES)
def rendered(request: pytest.FixtureRequest, helm: str) -> tuple[str, Objects]:
    values: str = request.param
    return values, render(helm, values, EVERYTHING)


@pytest.fixture
def objects(rendered: tuple[str, Objects]) -> Objects:
    return rendered[1]


def test_all_kinds_are_rendered_into_the_namespace(objects: Objects) -> None:
    kinds = {part["kind"] for part in objects}
    assert kinds == {
        *("RayCluster", "RayJob", "RayService", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Ingress"),
        *("HTTPRoute", "PodMonitor", "PrometheusRule", "ConfigMap"),
    }
    assert {part["metadata"]["namespace"] for part in objects} == {"mode-ray"}


def test_by_default_there_is_a_cluster_for_jobs_and_nothing_else_runs(helm: str) -> None:
    kinds = {part["kind"] for part in render(helm, "values.yaml")}
    assert kinds == {"RayCluster", "ServiceAccount", "PodDisruptionBudget", "ConfigMap"}


class TestKubeRay:
    def test_the_operator_knows_every_field(self, objects: Objects) -> None:
        for part in of_kinds(objects, "RayCluster", "RayJob", "RayService"):
            jsonschema.Draft7Validator(crd_schema(part["kind"])).validate(part)

    def test_an_unknown_field_would_be_found(self, objects: Objects) -> None:
        (cluster,) = of_kinds(objects, "RayCluster")
        wrong = {**cluster, "spec": {**cluster["spec"], "workers": []}}
        with pytest.raises(jsonschema.ValidationError) as caught:
            jsonschema.Draft7Validator(crd_schema("RayCluster")).validate(wrong)
        assert "'workers' was unexpected" in caught.value.message

    def test_the_autoscaler_leaves_a_pool_that_gives_no_machine(self, objects: Objects) -> None:
        for cluster in clusters(objects).values():
            options = cluster["autoscalerOptions"]
            assert options["version"] == "v2"
            assert options["env"] == [
                {"name": "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S", "value": str(SPOT_TIMEOUT_SECONDS)}
            ]

    def test_spot_goes_before_on_demand(self, rendered: tuple[str, Objects]) -> None:
        for cluster in clusters(rendered[1]).values():
            groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
            if rendered[0] == "values.yaml":
                assert set(groups) == {"cpu", "gpu"}
            else:
                for pool in ("cpu", "gpu"):
                    assert groups[f"{pool}-spot"]["priority"] > groups[f"{pool}-on-demand"]["priority"]

    def test_the_version_of_ray_is_that_of_the_image(self, objects: Objects) -> None:
        assert {cluster["rayVersion"] for cluster in clusters(objects).values()} == {IMAGE_RAY}

    def test_a_job_runs_the_script_of_its_stage_until_it_is_done(self, objects: Objects) -> None:
        (job,) = of_kinds(objects, "RayJob")
        script = job["spec"]["entrypoint"].split()[1].removeprefix("/opt/mode_ray/")
        assert (REPOSITORY / script).is_file()
        assert job["spec"]["backoffLimit"] > 0
        assert job["metadata"]["name"] == "mode-ray-pipeline-1"


class TestPods:
    def test_they_do_not_run_as_root_and_know_the_probes(self, objects: Objects) -> None:
        for group in groups_of(objects):
            pod = group["template"]["spec"]
            assert pod["restartPolicy"] == "Never"
            assert pod["securityContext"]["runAsNonRoot"]
            container = pod["containers"][0]
            assert container["livenessProbe"]["failureThreshold"] * container["livenessProbe"]["periodSeconds"] == 600
            assert {mount["name"] for mount in container["volumeMounts"]} == {part["name"] for part in pod["volumes"]}
            memory = next(part["emptyDir"] for part in pod["volumes"] if part["name"] == "shared-memory")
            assert memory["medium"] == "Memory"
            assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
            assert {"name": "HF_HOME", "value": "/tmp/hub"} in container["env"]  # noqa: S108
            assert pod["imagePullSecrets"] == [{"name": "registry"}]
            assert pod["priorityClassName"] == "training"
            assert pod["containers"][1]["name"] == "logs"

    def test_head_and_workers_have_identities_of_their_own(self, objects: Objects) -> None:
        for cluster in clusters(objects).values():
            head = cluster["headGroupSpec"]["template"]["spec"]
            workers = [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
            assert head["serviceAccountName"] == "mode-ray-head"
            assert {pod["serviceAccountName"] for pod in workers} == {"mode-ray-worker"}
            assert not any(pod["automountServiceAccountToken"] for pod in workers)

    def test_a_stopped_worker_is_drained_before_the_grace_period_ends(self, objects: Objects) -> None:
        for cluster in clusters(objects).values():
            for group in cluster["workerGroupSpecs"]:
                pod = group["template"]["spec"]
                command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
                assert command[:4] == ["python", "-m", "mode_ray.deploy.spot_watcher", "--drain-now"]
                drained = float(command[4].removeprefix("--seconds="))
                assert 10 <= drained < pod["terminationGracePeriodSeconds"]

    def test_each_fits_on_its_machine(self, rendered: tuple[str, Objects]) -> None:
        machines = MACHINES.get(rendered[0], {})
        for group in groups_of(rendered[1]):
            if (pool := group["labels"]["mode-ray/pool"]) in machines:
                requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
                memory, cpus = allocatable(*machines[pool])
                assert int(requests["memory"].removesuffix("Gi")) < memory
                assert int(requests["cpu"]) < cpus

    @pytest.mark.parametrize(("runs", "memory"), [(4, "13Gi"), (16, "22Gi")])
    def test_the_heads_memory_follows_from_the_concurrent_runs(self, helm: str, runs: int, memory: str) -> None:
        (cluster,) = clusters(render(helm, "values-gke.yaml", [f"concurrentRuns={runs}"])).values()
        container = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert container["resources"]["requests"]["memory"] == memory
        assert container["resources"]["limits"]["memory"] == memory

    def test_gpu_machines_get_the_gpu_image(self, objects: Objects) -> None:
        for group in groups_of(objects):
            container = group["template"]["spec"]["containers"][0]
            has_gpus = "nvidia.com/gpu" in container["resources"]["limits"]
            assert container["image"].endswith("-gpu" if has_gpus else "-cpu")


class TestService:
    def test_serve_accepts_it_and_no_machine_has_two_replicas(self, objects: Objects) -> None:
        (service,) = of_kinds(objects, "RayService")
        schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
        assert [application.name for application in schema.applications] == [
            *(f"expert-{number}" for number in range(4)),
            "router",
        ]
        for application in schema.applications:
            (deployment,) = application.deployments
            assert deployment.max_replicas_per_node == 1
            assert isinstance(deployment.autoscaling_config, dict)
            assert deployment.autoscaling_config["min_replicas"] >= 2
            assert application.args["settings"] == {"token_hashes": ["00ff"]}

    @pytest.mark.parametrize(
        ("of_one_replica", "applications"),
        [
            (1, ["expert-0", "expert-1", "expert-2", "expert-3"]),
            (2, ["experts-0-1", "experts-2-3"]),
            (3, ["experts-0-2", "expert-3"]),
            (4, ["experts"]),
            (5, ["experts"]),
        ],
    )
    def test_several_experts_can_be_one_application(
        self, helm: str, of_one_replica: int, applications: list[str]
    ) -> None:
        objects = render(helm, "values.yaml", ["service.enabled=true", f"service.expertsPerReplica={of_one_replica}"])
        (service,) = of_kinds(objects, "RayService")
        deployed = yaml.safe_load(service["spec"]["serveConfigV2"])
        settings = ServeConfig(experts_per_replica=of_one_replica)
        written = serve_document("s3://example-mode-ray/run1", range(4), settings)
        both = deployed["applications"], written["applications"]
        names = [[one["name"] for one in document] for document in both]
        assert names[0] == names[1] == [*applications, "router"]
        arguments = [[one["args"] for one in document] for document in both]
        assert arguments[0] == arguments[1]
        users = [document[-1]["deployments"][0]["user_config"] for document in both]
        assert users[0] == users[1]

    def test_an_application_without_experts_is_refused(self, helm: str) -> None:
        with pytest.raises(ValueError, match=r"service\.expertsPerReplica: 0 must be at least 1"):
            render(helm, "values.yaml", ["service.enabled=true", "service.expertsPerReplica=0"])

    def test_it_has_machines_on_demand_that_stay_and_a_redis(self, rendered: tuple[str, Objects]) -> None:
        if rendered[0] == "values.yaml":
            pytest.skip("these values have no spot machines")
        cluster = clusters(rendered[1])["RayService"]
        fewest = {group["groupName"]: group["minReplicas"] for group in cluster["workerGroupSpecs"]}
        assert fewest == {"cpu-on-demand": 2, "cpu-spot": 0, "gpu-on-demand": 2, "gpu-spot": 0}
        assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
        assert "gcsFaultToleranceOptions" not in clusters(rendered[1])["RayJob"]

    def test_a_floor_above_the_pool_is_refused(self, helm: str) -> None:
        with pytest.raises(ValueError, match=r"pools\.cpu: min and service\.floor must be at most max=4"):
            render(helm, "values.yaml", ["service.enabled=true", "service.floor.cpu=9"])


class TestTheRunsConfig:
    def test_its_pools_fill_the_cpu_machines_and_select_labels_that_exist(
        self, objects: Objects, tmp_path: Path
    ) -> None:
        text = next(part["data"]["run.yaml"] for part in of_kinds(objects, "ConfigMap") if "run.yaml" in part["data"])
        (tmp_path / "run.yaml").write_text(text)
        config = load_config(str(tmp_path / "run.yaml"))
        groups = clusters(objects)["RayCluster"]["workerGroupSpecs"]
        cpus = sum(
            group["maxReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
            for group in groups
            if group["labels"]["mode-ray/pool"] == "cpu"
        )
        assert config.assign.pool.max_actors == config.embed.pool.min_actors == cpus
        assert config.assign.pool.label_selector == {"mode-ray/pool": "cpu"}
        labels = [group["labels"] for group in groups]
        assert any(config.train.placement.label_selector.items() <= one.items() for one in labels)


class TestMonitoring:
    def test_prometheus_finds_the_objects_by_their_label(self, helm: str) -> None:
        found = render(helm, "values.yaml", ["monitoring.enabled=true", "monitoring.labels.release=observability"])
        for part in of_kinds(found, "PodMonitor", "PrometheusRule"):
            assert part["metadata"]["labels"]["release"] == "observability"

    def test_the_scraped_ports_exist(self, objects: Objects) -> None:
        (monitor,) = of_kinds(objects, "PodMonitor")
        scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        for cluster in clusters(objects).values():
            head, *workers = (
                {port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]}
                for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
            )
            assert {port: head[port] for port in scraped} == {"metrics": 8080, "as-metrics": AUTOSCALER_METRIC_PORT}
            assert all("metrics" in ports for ports in workers)

    def test_no_alarm_fires_because_a_job_has_ended(self, objects: Objects) -> None:
        (rule,) = of_kinds(objects, "PrometheusRule")
        alarms = {alarm["alert"]: alarm["expr"] for group in rule["spec"]["groups"] for alarm in group["rules"]}
        assert not any("absent(" in expression for expression in alarms.values())
        # The operator deletes this series with the cluster of the job.
        assert alarms["RayHeadDown"].startswith("kuberay_cluster_info")
        assert "ExpertFailed" in alarms

    def test_the_alarms_of_kubernetes_are_in_the_runbook(self, objects: Objects) -> None:
        runbook = (REPOSITORY / "docs/operations.md").read_text()
        (rule,) = of_kinds(objects, "PrometheusRule")
        for alarm in (alarm["alert"] for group in rule["spec"]["groups"] for alarm in group["rules"]):
            assert f"`{alarm}`" in runbook, alarm

    def test_grafana_gets_the_dashboards(self, objects: Objects) -> None:
        boards = next(
            part for part in of_kinds(objects, "ConfigMap") if part["metadata"]["name"] == "mode-ray-dashboards"
        )
        assert set(boards["data"]) == {"mode_ray_pipeline.json", "mode_ray_serving.json"}
        assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_kubernetes_accepts_its_own_kinds(objects: Objects) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for part in of_kinds(objects, "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Ingress", "ConfigMap"):
        validate.validate(part, "1.33", strict=True)


def test_helm_finds_nothing_to_complain_about(helm: str) -> None:
    ended = subprocess.run([helm, "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_no_template_holds_a_token_or_key() -> None:
    for file in CHART.rglob("*.yaml"):
        assert not re.search(r"RAY_AUTH_TOKEN\b|SECRET_ACCESS_KEY=|password:", file.read_text()), file


def of_kinds(objects: Objects, *kinds: str) -> Objects:
    return [part for part in objects if part["kind"] in kinds]


def clusters(objects: Objects) -> dict[str, dict[str, Any]]:
    """The specs of the Ray clusters, by the kind of the object that has them."""
    found = {}
    for part in of_kinds(objects, "RayCluster", "RayJob", "RayService"):
        spec = part["spec"]
        found[part["kind"]] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def groups_of(objects: Objects) -> Objects:
    return [
        group
        for cluster in clusters(objects).values()
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]


def allocatable(memory_gib: int, cpus: int) -> tuple[float, float]:
    """What GKE leaves of a machine: its documented reservations, 100 MiB for evictions, and 1 GiB for other pods."""
    left, reserved = float(memory_gib), 0.0
    for size, share in ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06), (1e9, 0.02)):
        reserved += min(left, size) * share
        left -= min(left, size)
    cpu_reserved = 0.06 + 0.01 + 2 * 0.005 + (cpus - 4) * 0.0025
    return memory_gib - reserved - 0.1 - 1.0, cpus - cpu_reserved - 0.5


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
