"""`ray up aws.yaml` on moto's EC2: what the laptop makes, what the head launches and ends, and with which rights."""

import fnmatch
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import yaml
from moto import mock_aws
from moto.ec2.models import instance_types
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, IConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

from mode_ray.deploy.render import read_values, render_all
from mode_ray.deploy.values import ClusterValues

pytestmark = pytest.mark.drill  # 12 seconds of processor time, most of them for imports and moto's first calls

REPOSITORY = Path(__file__).resolve().parents[2]
VALUES = str(REPOSITORY / "cluster_configs/values.yaml")
REGION, ACCOUNT = "us-west-2", "123456789012"
WORKERS = {"cpu_spot": 1, "gpu_spot": 1, "gpu_on_demand": 1}  # moto launches one machine a call
DEADLINE_SECONDS = 60.0


class Call(NamedTuple):
    """A call of an API, and its parameters."""

    action: str
    parameters: Mapping[str, Any]


class Machine(NamedTuple):
    """What EC2 knows of a machine that was launched."""

    node_type: str
    type: str
    image: str
    profile: str
    is_spot: bool
    subnet: str
    groups: tuple[str, ...]


class Story(NamedTuple):
    """What happened on EC2."""

    values: ClusterValues
    config: dict[str, Any]
    labels: dict[str, dict[str, str]]
    laptop: list[Call]
    head: list[Call]
    machines: list[Machine]
    subnet_zones: dict[str, str]
    errors: list[Any]
    left: list[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, mock_aws(), fresh_clients():
        patch.setenv("HOME", str(home))  # `ray up` writes a key pair to ~/.ssh
        patch.delenv("AWS_ENDPOINT_URL", raising=False)  # of the S3 server of other tests
        values = read_values(VALUES, images_and_profiles())
        # Ray reads all of them; the thousand that moto knows take many seconds.
        used = {values.aws.head.type, values.aws.cpu.type, values.aws.gpu.type}
        patch.setattr(instance_types, "INSTANCE_TYPES", {name: instance_types.INSTANCE_TYPES[name] for name in used})
        ec2 = boto3.client("ec2", REGION)
        with recorded_calls() as laptop:
            config = _bootstrap_config(yaml.safe_load(render_all(values)["aws.yaml"]), no_config_cache=True)
            launch_head(config)
        on_laptop = {machine["InstanceId"] for machine in instances(ec2)}
        with recorded_calls() as head:
            cloud = Autoscaler(config)
            ids = cloud.launch(WORKERS)
            cloud.tag(ids[0])
            machines = [as_machine(machine) for machine in instances(ec2)]
            cloud.end(ids)
        left = [machine["InstanceId"] for machine in instances(ec2)]
        assert set(left) <= on_laptop
        zones = {one["SubnetId"]: one["AvailabilityZone"] for one in ec2.describe_subnets()["Subnets"]}
        labels = {name: one.labels for name, one in cloud.config.get_node_type_configs().items()}
        yield Story(values, config, labels, laptop, head, machines, zones, cloud.adapter.poll_errors(), left)


class Autoscaler:
    """Ray's adapter of the cloud, as the head makes it from the file that `ray up` copies there."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = AutoscalingConfig(dict(config), skip_content_hash=True)
        self.provider = node_provider(config)
        self.adapter = NodeProviderAdapter(self.provider, OneConfig(self.config))

    def launch(self, counts: Mapping[str, int]) -> list[str]:
        self.adapter.launch(dict(counts), "request")
        return self._wait_for(sum(counts.values()))

    def tag(self, machine: str) -> None:
        """As the step that installs Ray on a machine."""
        self.provider.set_node_tags(machine, {TAG_RAY_NODE_STATUS: "up-to-date"})

    def end(self, machines: Sequence[str]) -> None:
        self.adapter.terminate(list(machines), "request")
        self._wait_for(0)

    def _wait_for(self, count: int) -> list[str]:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(found := self._workers()) != count:
            assert time.monotonic() < deadline, (found, self.adapter.poll_errors())
            time.sleep(0.05)
        return found

    def _workers(self) -> list[str]:
        return [name for name, one in self.adapter.get_non_terminated().items() if one.node_type in WORKERS]


class OneConfig(IConfigReader):
    """Gives the autoscaler a config that never changes."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._config = config

    def get_cached_autoscaling_config(self) -> AutoscalingConfig:
        return self._config

    def refresh_cached_autoscaling_config(self) -> None:
        """There is nothing to read again."""


def images_and_profiles() -> list[str]:
    """Make images, roles and profiles as in docs/operations.md; returns the values that name them."""
    ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
    for role in ("mode-ray-head", "mode-ray-worker"):
        iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=role)
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    images = [ec2.register_image(Name=name, RootDeviceName="/dev/sda1")["ImageId"] for name in ("cpu", "gpu")]
    return [f"aws.cpu_image_id={images[0]}", f"aws.gpu_image_id={images[1]}"]


def node_provider(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - Ray's providers have no types
    return AWSNodeProvider(config["provider"], config["cluster_name"])  # type: ignore[no-untyped-call]


def launch_head(config: Mapping[str, Any]) -> None:
    """Launch the head as `ray up` does, up to the first connection by SSH."""
    head_type = config["head_node_type"]
    node_config = {**config["available_node_types"][head_type]["node_config"], **config.get("head_node", {})}
    tags = {
        TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
        TAG_RAY_USER_NODE_TYPE: head_type,
        TAG_RAY_LAUNCH_CONFIG: "hash",
        TAG_RAY_NODE_NAME: f"ray-{config['cluster_name']}-head",
        TAG_RAY_NODE_STATUS: "uninitialized",
    }
    provider = node_provider(config)
    provider.create_node(node_config, tags, 1)
    (head,) = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD})
    provider.set_node_tags(head, {TAG_RAY_NODE_STATUS: "up-to-date"})


def instances(ec2: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - boto3's clients have no types
    """The machines that are not ended."""
    found = [machine for one in ec2.describe_instances()["Reservations"] for machine in one["Instances"]]
    return [machine for machine in found if machine["State"]["Name"] in ("pending", "running")]


def as_machine(found: Mapping[str, Any]) -> Machine:
    tags = {tag["Key"]: tag["Value"] for tag in found["Tags"]}
    return Machine(
        node_type=tags[TAG_RAY_USER_NODE_TYPE],
        type=found["InstanceType"],
        image=found["ImageId"],
        profile=found["IamInstanceProfile"]["Arn"],
        is_spot=found.get("InstanceLifecycle") == "spot",
        subnet=found["SubnetId"],
        groups=tuple(group["GroupId"] for group in found["SecurityGroups"]),
    )


@contextmanager
def fresh_clients() -> Iterator[None]:
    """Ray keeps its clients: none may come from before, and none may stay."""
    for cache in (client_cache, resource_cache):
        cache.cache_clear()
    yield
    for cache in (client_cache, resource_cache):
        cache.cache_clear()


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Record the calls of all clients that are made meanwhile."""
    calls: list[Call] = []

    def keep(params: Mapping[str, Any], context: dict[str, Any], **_: object) -> None:
        context["given"] = dict(params)

    def note(model: Any, context: Mapping[str, Any], **_: object) -> None:  # noqa: ANN401 - an operation of botocore
        calls.append(Call(f"{model.service_model.service_name}:{model.name}", context["given"]))

    boto3.setup_default_session()
    events = boto3._get_default_session().events
    events.register("provide-client-params", keep)
    events.register("before-call", note)
    with fresh_clients():
        yield calls
    boto3.setup_default_session()


class TestWhatIsLaunched:
    def test_no_launch_failed(self, story: Story) -> None:
        assert story.errors == []

    def test_each_pool_gets_the_machines_that_were_requested(self, story: Story) -> None:
        counts: dict[str, int] = defaultdict(int)
        for machine in story.machines:
            counts[machine.node_type] += 1
        assert counts == {"head": 1, **WORKERS}

    def test_type_and_image_are_those_of_the_values(self, story: Story) -> None:
        aws = story.values.aws
        for machine in story.machines:
            wanted = {"head": aws.head, "cpu_spot": aws.cpu}.get(machine.node_type, aws.gpu)
            image = aws.gpu_image_id if machine.node_type.startswith("gpu") else aws.cpu_image_id
            assert (machine.type, machine.image) == (wanted.type, image), machine.node_type

    def test_workers_do_not_get_the_profile_that_starts_machines(self, story: Story) -> None:
        aws = story.values.aws
        for machine in story.machines:
            is_head = machine.node_type == "head"
            assert machine.profile == (aws.head_instance_profile if is_head else aws.worker_instance_profile)

    def test_the_spot_pools_are_on_the_spot_market_and_no_other(self, story: Story) -> None:
        assert {machine.node_type for machine in story.machines if machine.is_spot} == {"cpu_spot", "gpu_spot"}

    def test_their_labels_name_pool_and_market(self, story: Story) -> None:
        assert story.labels == {
            "head": {"mode-ray/pool": "head", "ray.io/market-type": "on-demand"},
            "cpu_spot": {"mode-ray/pool": "cpu", "ray.io/market-type": "spot"},
            "gpu_spot": {"mode-ray/pool": "gpu", "ray.io/market-type": "spot"},
            "gpu_on_demand": {"mode-ray/pool": "gpu", "ray.io/market-type": "on-demand"},
        }

    def test_they_are_in_one_security_group_and_in_subnets_of_the_zones(self, story: Story) -> None:
        assert len({machine.groups for machine in story.machines}) == 1
        zones = story.values.aws.zones.split(",")
        assert {story.subnet_zones[machine.subnet] for machine in story.machines} <= set(zones)
        for name, kind in story.config["available_node_types"].items():
            assert [story.subnet_zones[subnet] for subnet in kind["node_config"]["SubnetIds"]] == zones, name

    def test_the_head_offers_no_cpus_although_ray_reads_the_sizes_of_machines(self, story: Story) -> None:
        assert {name: kind["resources"].get("CPU") for name, kind in story.config["available_node_types"].items()} == {
            "head": 0,
            "cpu_spot": story.values.aws.cpu.cpus,
            "gpu_spot": story.values.aws.gpu.cpus,
            "gpu_on_demand": story.values.aws.gpu.cpus,
        }

    def test_only_the_head_stays_when_the_workers_are_ended(self, story: Story) -> None:
        assert len(story.left) == 1


class TestRights:
    def test_the_documented_policy_of_the_head_allows_what_it_does(self, story: Story) -> None:
        statements = documented_statements()
        for right, resource in rights(story.head):
            assert is_allowed(statements, right, resource), (right, resource)

    def test_it_allows_the_head_no_action_that_it_does_not_need(self, story: Story) -> None:
        needed = [right for right, _ in rights(story.head)]
        for statement in documented_statements():
            for action in as_list(statement["Action"]):
                assert fnmatch.filter(needed, action), action

    def test_the_head_may_not_give_its_own_rights_to_a_machine(self) -> None:
        own = f"arn:aws:iam::{ACCOUNT}:role/mode-ray-head"
        assert not is_allowed(documented_statements(), "iam:PassRole", own)

    def test_the_page_lists_what_your_own_account_needs_for_ray_up(self, story: Story) -> None:
        page = (REPOSITORY / "docs/operations.md").read_text()
        (sentence,) = re.findall(
            r"`ray up` and `ray down` need these rights of your own account: (.+?)\.\n", page, re.S
        )
        named = re.findall(r"`(\w+:[\w*]+)`", sentence)
        needed = sorted({right for right, _ in rights(story.laptop)})
        assert [right for right in needed if not any(fnmatch.fnmatch(right, name) for name in named)] == []


def rights(calls: Sequence[Call]) -> Iterator[tuple[str, str]]:
    """The rights that calls need, and the resource; launching a machine needs those for its tags and its role too."""
    for call in calls:
        yield call.action, "*"
        if call.action == "ec2:RunInstances":
            yield "ec2:CreateTags", "*"
            profile = call.parameters["IamInstanceProfile"]["Arn"]
            yield "iam:PassRole", profile.replace(":instance-profile/", ":role/")


def documented_statements() -> list[dict[str, Any]]:
    """The statements of the policy `autoscaler` in docs/operations.md."""
    page = (REPOSITORY / "docs/operations.md").read_text()
    (text,) = re.findall(r"--policy-name autoscaler --policy-document \\\n\s+'(.+?)'", page, re.S)
    statements: list[dict[str, Any]] = json.loads(text.replace("ACCOUNT", ACCOUNT))["Statement"]
    return statements


def is_allowed(statements: Sequence[Mapping[str, Any]], action: str, resource: str) -> bool:
    return any(
        statement["Effect"] == "Allow"
        and any(fnmatch.fnmatchcase(action, pattern) for pattern in as_list(statement["Action"]))
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in as_list(statement["Resource"]))
        for statement in statements
    )


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
