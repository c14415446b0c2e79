"""What `mode-ray doctor --values` says of an AWS account: IAM is moto's, the quotas are answers of the test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from mode_ray.deploy.account import check_account, examine_account
from mode_ray.deploy.findings import Finding
from mode_ray.deploy.render import read_values

VALUES = str(Path(__file__).resolve().parents[2] / "cluster_configs/values.yaml")
REGION = "us-west-2"
# What the committed values need: one head; 40 CPU machines of 32; 4 GPU machines of 48 in each market.
NEEDED = {"L-1216C47A": 8.0, "L-34B43A08": 1280.0, "L-3819A6DF": 192.0, "L-DB2E81BA": 192.0}


@pytest.fixture
def iam(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)  # of the S3 server of other tests
    with mock_aws():
        client = boto3.client("iam", REGION)
        client.create_role(RoleName="AWSServiceRoleForEC2Spot", AssumeRolePolicyDocument="{}")
        yield client


def findings(iam: Any, quotas: dict[str, float], *overrides: str) -> list[Finding]:  # noqa: ANN401
    """The findings if the account has these quotas, which are asked for in this order."""
    client = boto3.client("service-quotas", REGION, aws_access_key_id="test", aws_secret_access_key="test")  # noqa: S106
    with Stubber(client) as stub:
        for code, value in quotas.items():
            asked = {"ServiceCode": "ec2", "QuotaCode": code}
            stub.add_response("get_service_quota", {"Quota": {"QuotaCode": code, "Value": value}}, asked)
        found = check_account(read_values(VALUES, overrides), client, iam)
        stub.assert_no_pending_responses()
    return found


def test_quotas_for_all_machines_of_the_pools_are_enough(iam: Any) -> None:  # noqa: ANN401
    assert [found.state for found in findings(iam, NEEDED)] == ["ok"] * 5


def test_one_vcpu_less_is_named_with_the_command_that_requests_more(iam: Any) -> None:  # noqa: ANN401
    found = findings(iam, NEEDED | {"L-3819A6DF": 191.0})
    assert [one.state for one in found] == ["ok", "ok", "failed", "ok", "ok"]
    assert found[2].found == "All G and VT Spot Instance Requests: 191 vCPUs, the pools need up to 192"
    assert "--service-code ec2 --quota-code L-3819A6DF --desired-value 192" in found[2].fix


def test_machines_of_one_family_and_market_share_a_quota(iam: Any) -> None:  # noqa: ANN401
    quotas = {"L-DB2E81BA": 8.0 + 192.0, "L-34B43A08": 1280.0, "L-3819A6DF": 192.0}
    assert {found.state for found in findings(iam, quotas, "aws.head.type=g6.2xlarge")} == {"ok"}


@pytest.mark.parametrize(
    ("machine", "codes"),
    [
        ("p4d.24xlarge", {"L-7212CCBC": 192.0, "L-417A185B": 192.0}),
        ("p5.48xlarge", {"L-C4BD4855": 192.0, "L-417A185B": 192.0}),
    ],
)
def test_p_machines_have_quotas_of_their_own(iam: Any, machine: str, codes: dict[str, float]) -> None:  # noqa: ANN401
    quotas = {"L-1216C47A": 8.0, "L-34B43A08": 1280.0} | codes
    assert {found.state for found in findings(iam, quotas, f"aws.gpu.type={machine}")} == {"ok"}


def test_an_unknown_family_is_said_to_be_unknown(iam: Any) -> None:  # noqa: ANN401
    quotas = {"L-1216C47A": 8.0, "L-34B43A08": 1280.0}
    found = findings(iam, quotas, "aws.gpu.type=trn2.48xlarge")
    assert [one.state for one in found] == ["unknown", "unknown", "ok", "ok", "ok"]


def test_a_pool_without_machines_needs_no_quota(iam: Any) -> None:  # noqa: ANN401
    quotas = {"L-1216C47A": 8.0, "L-34B43A08": 1280.0, "L-3819A6DF": 192.0}
    assert len(findings(iam, quotas, "pools.gpu_on_demand.most=0")) == 4


def test_a_missing_spot_role_is_named_with_the_command_that_creates_it(iam: Any) -> None:  # noqa: ANN401
    iam.delete_role(RoleName="AWSServiceRoleForEC2Spot")
    role = findings(iam, NEEDED)[-1]
    assert role.state == "failed"
    assert "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com" in role.fix


def test_what_may_not_be_read_is_unknown(iam: Any) -> None:  # noqa: ANN401
    quotas = boto3.client("service-quotas", REGION)
    with Stubber(quotas) as stub, Stubber(iam) as stubbed_iam:
        for _ in NEEDED:
            stub.add_client_error("get_service_quota", "AccessDeniedException")
        stubbed_iam.add_client_error("get_role", "AccessDenied")
        found = check_account(read_values(VALUES), quotas, iam)
    assert [one.state for one in found] == ["unknown"] * 5
    assert found[1].found.endswith("not readable (AccessDeniedException); the pools need 1280 vCPUs")


def test_without_credentials_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    boto3.setup_default_session()
    (found,) = examine_account(read_values(VALUES))
    assert (found.state, found.found) == ("unknown", "not checked: Unable to locate credentials")


def test_values_of_google_cloud_are_not_compared_with_aws() -> None:
    (found,) = examine_account(read_values(VALUES, ["bucket=gs://pairs/mode"]))
    assert found.state == "unknown"
