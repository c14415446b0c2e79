"""Checks of an AWS account against the values of a `ray up` cluster: quotas, and the role that spot machines need."""

import re
from collections.abc import Iterator
from typing import Any

from mode_ray.deploy.findings import Finding
from mode_ray.deploy.values import ClusterValues, MachineType

# Quotas of EC2 count vCPUs, for each family of types and each market. Names and codes are those of Service Quotas.
_ON_DEMAND = {
    "standard": ("Running On-Demand Standard instances", "L-1216C47A"),
    "G": ("Running On-Demand G and VT instances", "L-DB2E81BA"),
    "P": ("Running On-Demand P instances", "L-417A185B"),
    "P5": ("Running On-Demand P instances", "L-417A185B"),
}
_SPOT = {
    "standard": ("All Standard Spot Instance Requests", "L-34B43A08"),
    "G": ("All G and VT Spot Instance Requests", "L-3819A6DF"),
    "P": ("All P4, P3 and P2 Spot Instance Requests", "L-7212CCBC"),
    "P5": ("All P5 Spot Instance Requests", "L-C4BD4855"),
}
_FAMILIES = {
    "standard": r"(a|c|d|h|i|im|is|m|r|t|z)\d",
    "G": r"(g|gr|vt)\d",
    "P": r"p[234]",
    "P5": r"p5",
}
_SPOT_ROLE = "AWSServiceRoleForEC2Spot"
_CREATE_SPOT_ROLE = "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"


def examine_account(values: ClusterValues) -> list[Finding]:
    """Check the AWS account of the environment's credentials; what it may not read is reported as unknown."""
    if not values.bucket.startswith("s3://"):
        return [Finding("AWS account", "unknown", "not checked: the bucket of these values is not on AWS")]
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})
    try:
        quotas = boto3.client("service-quotas", values.aws.region, config=config)
        iam = boto3.client("iam", values.aws.region, config=config)
        return check_account(values, quotas, iam)
    except BotoCoreError as error:  # for example no credentials, or no network
        return [Finding("AWS account", "unknown", f"not checked: {error}")]


def check_account(values: ClusterValues, quotas: Any, iam: Any) -> list[Finding]:  # noqa: ANN401 - clients of boto3
    """Whether the quotas allow all machines of the pools at the same time, and whether the role for spot exists.

    Args:
        values: The values of the cluster.
        quotas: A client of `service-quotas` in the cluster's region.
        iam: A client of `iam`.
    """
    findings, needed = [], dict[tuple[str, str], int]()
    for machine, count, quotas_by_family in _machines(values):
        family = _family(machine.type)
        if family is None:
            findings.append(Finding("quota", "unknown", f"{machine.type}: the quota of this family is not known here"))
            continue
        quota = quotas_by_family[family]
        needed[quota] = needed.get(quota, 0) + count * machine.cpus
    findings += [_check_quota(name, code, vcpus, quotas) for (name, code), vcpus in needed.items()]
    if values.pools.cpu.most or values.pools.gpu_spot.most:
        findings.append(_check_spot_role(iam))
    return findings


def _machines(values: ClusterValues) -> Iterator[tuple[MachineType, int, dict[str, tuple[str, str]]]]:
    """Each kind of machine, the most of them, and the quotas of its market by family."""
    aws, pools = values.aws, values.pools
    kinds: tuple[tuple[MachineType, int, dict[str, tuple[str, str]]], ...] = (
        (aws.head, 1, _ON_DEMAND),
        (aws.cpu, pools.cpu.most, _SPOT),
        (aws.gpu, pools.gpu_spot.most, _SPOT),
        (aws.gpu, pools.gpu_on_demand.most, _ON_DEMAND),
    )
    yield from (kind for kind in kinds if kind[1])


def _family(machine_type: str) -> str | None:
    return next((family for family, pattern in _FAMILIES.items() if re.match(pattern, machine_type)), None)


def _check_quota(name: str, code: str, vcpus: int, quotas: Any) -> Finding:  # noqa: ANN401
    from botocore.exceptions import ClientError

    try:
        allowed = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
    except ClientError as error:
        reason = error.response["Error"]["Code"]
        return Finding("quota", "unknown", f"{name}: not readable ({reason}); the pools need {vcpus} vCPUs")
    found = f"{name}: {allowed:g} vCPUs, the pools need up to {vcpus}"
    if allowed < vcpus:
        command = f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {code}"
        fix = f"request more ({command} --desired-value {vcpus}), or lower `most` of the pools in values.yaml"
        return Finding("quota", "failed", found, fix)
    return Finding("quota", "ok", found)


def _check_spot_role(iam: Any) -> Finding:  # noqa: ANN401
    from botocore.exceptions import ClientError

    try:
        iam.get_role(RoleName=_SPOT_ROLE)
    except ClientError as error:
        reason = error.response["Error"]["Code"]
        if reason == "NoSuchEntity":
            fix = f"create it once for the account: {_CREATE_SPOT_ROLE}"
            return Finding("spot role", "failed", f"{_SPOT_ROLE} is missing: the head cannot start spot machines", fix)
        return Finding("spot role", "unknown", f"{_SPOT_ROLE}: not readable ({reason})")
    return Finding("spot role", "ok", _SPOT_ROLE)
