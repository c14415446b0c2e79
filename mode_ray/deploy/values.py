"""The one place for what differs between two operators' clusters: bucket, images, machine types and pool sizes."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from mode_ray.config.base import PositiveFloat, PositiveInt, Settings, Strings

Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
BucketUri = Annotated[str, Field(pattern=r"^(s3|gs)://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9._/-]*[A-Za-z0-9])?$")]
Count = Annotated[int, Field(ge=0)]


class Images(Settings):
    """Docker images, as `cluster_configs/Dockerfile` builds them."""

    cpu: str
    """Of the head and the CPU workers."""
    gpu: str
    """Of the GPU workers."""


class PoolSize(Settings):
    """How many machines of a pool there are, at least and at most."""

    fewest: Count = 0
    most: Count

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.fewest > self.most:
            raise ValueError(f"fewest={self.fewest} is above most={self.most}")
        return self


class Pools(Settings):
    """The pools of workers; the head takes no work."""

    cpu: PoolSize
    """Spot machines that read, embed, assign, fit and evaluate."""
    gpu_spot: PoolSize
    """Spot GPU machines for the experts, asked for first."""
    gpu_on_demand: PoolSize
    """On-demand GPU machines, for as long as no spot one can be had."""


class MachineType(Settings):
    """A cloud's machine type and what Ray may count on there."""

    type: str
    cpus: PositiveInt
    gpus: Count = 0
    disk_gb: PositiveInt = 200


class AwsValues(Settings):
    """EC2."""

    region: str = "us-west-2"
    zones: str = "us-west-2a,us-west-2b,us-west-2c"
    """Tried in this order."""
    head: MachineType
    cpu: MachineType
    gpu: MachineType
    head_instance_profile: str
    """ARN of an instance profile that may start and end machines; docs/operations.md has its policy."""
    worker_instance_profile: str
    """ARN of an instance profile that may read and write the bucket, and nothing else."""
    image_id: str | None = None
    """AMI with Docker and the NVIDIA driver; by default the one Ray knows for the region."""


class GcpValues(Settings):
    """Compute Engine."""

    project: str
    region: str = "us-central1"
    zone: str = "us-central1-a"
    head: MachineType
    cpu: MachineType
    gpu: MachineType
    head_service_account: str
    """May start and end machines, and act as the workers' account."""
    worker_service_account: str
    """May read and write the bucket, and nothing else."""
    cpu_disk_image: str
    """Disk image with Docker."""
    gpu_disk_image: str
    """Disk image with Docker and the NVIDIA driver."""


class PodSize(Settings):
    """What one pod asks for; its limits are the same."""

    cpus: PositiveInt
    memory_gib: PositiveInt
    shared_memory_gib: PositiveInt
    """Of /dev/shm, where Ray keeps its objects; counted in `memory_gib`."""
    gpus: Count = 0


class KubernetesValues(Settings):
    """KubeRay on GKE, EKS or another cluster."""

    namespace: Name = "mode-ray"
    service_account: Name = "mode-ray"
    service_account_annotations: dict[str, str] = Field(default_factory=dict)
    """What ties it to the bucket: `iam.gke.io/gcp-service-account` on GKE, `eks.amazonaws.com/role-arn` on EKS."""
    token_secret: Name = "mode-ray-token"  # noqa: S105 - the name of a secret, not one
    """Secret with Ray's token under the key `auth_token`."""
    environment_secret: Name | None = None
    """Secret whose keys become variables of all pods, for example AWS_ACCESS_KEY_ID where there are no roles."""
    spot_label: dict[str, str] = Field(default_factory=lambda: {"cloud.google.com/gke-spot": "true"})
    """Label and taint of spot nodes: `{"eks.amazonaws.com/capacityType": "SPOT"}` on EKS."""
    gpu_node_label: dict[str, str] = Field(default_factory=dict)
    """Label of the nodes with the right GPU, for example `{"cloud.google.com/gke-accelerator": "nvidia-l4"}`."""
    head: PodSize
    cpu: PodSize
    gpu: PodSize


class SingleNode(Settings):
    """One machine, reached by SSH, that is the whole cluster."""

    address: str = "10.0.0.10"
    user: str = "ubuntu"


class Serving(Settings):
    """The ensemble behind HTTP."""

    run: str = "run1"
    """Below the bucket: the finished run that is served."""
    experts: PositiveInt = 4
    replicas: PositiveInt = 2
    """Of the router and of every expert, at least."""
    most_replicas: PositiveInt = 8
    gpus_per_expert: Annotated[float, Field(ge=0.0)] = 0.25
    token_hashes: Strings = ()
    """SHA-256, in hex, of the bearer tokens that clients may send; with none, whoever reaches the service may ask."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.replicas > self.most_replicas:
            raise ValueError(f"replicas={self.replicas} is above most_replicas={self.most_replicas}")
        return self


class Alarms(Settings):
    """From when on the alert rules ring."""

    memory_share: PositiveFloat = 0.9
    disk_percent: PositiveFloat = 85.0
    pending_node_minutes: PositiveInt = 20
    idle_gpu_minutes: PositiveInt = 30
    checkpoint_minutes: PositiveInt = 30
    """Some times `train.placement.checkpoint_interval_seconds`."""


class ClusterValues(Settings):
    """Everything the launch files are rendered from."""

    name: Name = "mode-ray"
    bucket: BucketUri
    """Where runs, data and configs lie: s3://… or gs://…, maybe with a prefix."""
    image: Images
    idle_minutes: PositiveInt = 5
    """A worker without work is given back after so long."""
    pools: Pools
    aws: AwsValues
    gcp: GcpValues
    kubernetes: KubernetesValues
    single_node: SingleNode = SingleNode()
    serve: Serving = Serving()
    alarms: Alarms = Alarms()

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for place in ("aws", "gcp", "kubernetes"):
            if getattr(self, place).gpu.gpus == 0:
                raise ValueError(f"{place}.gpu.gpus is 0: the experts' pool needs a machine with GPUs")
        return self
