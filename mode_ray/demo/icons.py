"""Icon pairs: the cloud and software pictures of the `diagrams` package, named by their folders and files."""

import re
from importlib import metadata
from pathlib import Path, PurePosixPath

from PIL import Image

from mode_ray.demo.names import CATEGORY_OF_FOLDER, VAGUE_CATEGORIES, category_name, provider_name
from mode_ray.demo.pairs import Pair, on_white, pick

_VARIANT = re.compile(r"-(?:white|rounded|blue)$")
_OWN_NAME = re.compile(r"^(?:azure|aws|amazon|google|ibm|alibaba|oci)-(?=.)")
# Written in capitals, or as in `_SPELLED`.
_ACRONYMS_TEXT = """
ad ai api apm bi bm cdn cicd cli cpu css dms dns drg drs dts ebs ec2 ecr ecs efs eks elb emr erp etl
fsx gis gpu hpc hsm http https iam id ide iot ip jwt kms mfa ml mq nat nfs oci ocid oke os php qldb
r rds s3 saas sap sdk ses sms sns sql sqs ssd ssh ssl sso tls tpu tv ui url vcn vm vms vmware vpc
vpn vr waf wan wfs wms xdr
"""
_ACRONYMS = frozenset(_ACRONYMS_TEXT.split())
_SPELLED = {"vmware": "VMware", "saas": "SaaS", "iot": "IoT", "cicd": "CI/CD", "vms": "VMs", "ocid": "OCID"}
# Abbreviations that a reader of captions does not know.
_EXPANDED = {
    "k8s/api": "API server",
    "k8s/c-c-m": "cloud controller manager",
    "k8s/c-m": "controller manager",
    "k8s/c-role": "cluster role",
    "k8s/cm": "config map",
    "k8s/crb": "cluster role binding",
    "k8s/crd": "custom resource definition",
    "k8s/deploy": "deployment",
    "k8s/ds": "daemon set",
    "k8s/ep": "endpoint",
    "k8s/hpa": "horizontal pod autoscaler",
    "k8s/ing": "ingress",
    "k8s/k-proxy": "kube proxy",
    "k8s/limits": "limit range",
    "k8s/netpol": "network policy",
    "k8s/ns": "namespace",
    "k8s/psp": "pod security policy",
    "k8s/pv": "persistent volume",
    "k8s/pvc": "persistent volume claim",
    "k8s/rb": "role binding",
    "k8s/rs": "replica set",
    "k8s/sa": "service account",
    "k8s/sc": "storage class",
    "k8s/sched": "scheduler",
    "k8s/sts": "stateful set",
    "k8s/svc": "service",
    "k8s/vol": "volume",
    "oci/bm": "bare metal",
    "oci/dcat": "data catalog",
    "oci/dis": "data integration service",
    "oci/dms": "database management service",
    "oci/id-access": "identity access",
    "oci/resource-mgmt": "resource management",
    "oci/vm": "virtual machine",
}
_FIRST_CAPTIONS = (
    "{provider} {category} icon: {name}",
    "the {name} logo, {category}, {provider}",
    "{name}, icon from {provider} for {category}",
    "icon of {name} ({category}, {provider})",
    "{category}: the {name} symbol of {provider}",
    "{name} as a diagram symbol, {provider} {category}",
    "{name} by {provider}, {category} icon",
    "pictogram for {category}, {name} in {provider}",
)
_UNSORTED_FIRST_CAPTIONS = (
    "{provider} icon: {name}",
    "the {name} logo, {provider}",
    "{name}, icon from {provider}",
    "icon of {name} ({provider})",
    "the {name} symbol of {provider}",
    "{name} as a {provider} diagram symbol",
    "pictogram for {name} in {provider}",
)
_FURTHER_CAPTIONS = (
    "an architecture diagram icon of {name}",
    "the {provider} {name} icon",
    "a flat logo for {name}",
    "{provider} {name}",
    "a small picture that stands for {name}",
    "{name}, a pictogram",
)


def icon_pairs(seed: int) -> list[Pair]:
    """All icons of the package; the seed chooses the wording of captions."""
    distribution = metadata.distribution("diagrams")
    files = [
        (PurePosixPath(*file.parts[1:]), Path(str(file.locate())))
        for file in distribution.files or ()
        if file.parts[0] == "resources" and file.suffix == ".png" and len(file.parts) == 4
    ]
    return [_pair(inner, path, seed) for inner, path in sorted(files)]


def draw_png(path: Path) -> Image.Image:
    """Read an image file and fit it on white.

    Raises:
        OSError: The file is not an image, or is cut short.
        SyntaxError: Its chunks are damaged.
        ValueError: Its header is.
    """
    with Image.open(path) as image:
        return on_white(image)


def readable_name(provider: str, stem: str) -> str:
    """`ec2-auto-scaling` as `EC2 auto scaling`, without the suffix of a colour or shape variant."""
    bare = _VARIANT.sub("", stem)
    if (expanded := _EXPANDED.get(f"{provider}/{bare}")) is not None:
        return expanded
    words = [word for word in re.split(r"[-_ ]+", _without_own_name(provider, bare)) if word]
    return " ".join(_SPELLED.get(word, word.upper()) if word in _ACRONYMS else word for word in words)


def concept_of(stem: str) -> str:
    """The icon's name without variant suffix, vendor prefix and plural, the same for every provider."""
    bare = _VARIANT.sub("", stem.lower()).removesuffix("-classic")
    return re.sub(r"[-_ ]+", "-", _OWN_NAME.sub("", bare)).removesuffix("s")


def _without_own_name(provider: str, stem: str) -> str:
    own = {"alibabacloud": "alibaba", "gcp": "google"}.get(provider, provider)
    return stem.removeprefix(f"{own}-") or stem


def _pair(inner: PurePosixPath, path: Path, seed: int) -> Pair:
    provider, folder = inner.parts[:2]
    key = re.sub(r"[^a-z0-9_-]+", "-", f"icon-{provider}-{folder}-{inner.stem}".lower())
    category = CATEGORY_OF_FOLDER.get(folder, folder)
    name = readable_name(provider, inner.stem)
    words = {"name": name, "provider": provider_name(provider), "category": category_name(category)}
    templates = _UNSORTED_FIRST_CAPTIONS if category in VAGUE_CATEGORIES else _FIRST_CAPTIONS
    first = pick(templates, seed, key, "first").format(**words)
    further = pick(_FURTHER_CAPTIONS, seed, key, "further").format(**words)
    concept = concept_of(inner.stem)
    return Pair(
        key=key,
        domain="icon",
        captions=tuple(dict.fromkeys((first, further, name))),
        labels={
            "provider": provider,
            "category": category,
            "folder": folder,
            "name": name,
            "concept": concept,
        },
        concept=concept,
        stratum=f"{provider}/{category}",
        draw=lambda: draw_png(path),
    )
