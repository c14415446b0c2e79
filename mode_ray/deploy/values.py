"""The values of a cluster: bucket, images, machine types and pool sizes."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from mode_ray.config.base import PositiveFloat, PositiveInt, Settings, Strings

Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
BucketUri = Annotated[str, Field(pattern=r"^(s3|gs)://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9._/-]*[A-Za-z0-9])?$")]
# After this time without a machine, Ray's autoscaler tries the next pool that fits. Ray's own default is an hour.
SPOT_TIMEOUT_SECONDS = 600
Count = Annotated[int, Field(ge=0)]


class Images(Settings):
    """Docker images built with `cluster_configs/Dockerfile`."""

    cpu: str
    """For the head and the CPU workers."""
    gpu: str
    """For the GPU workers."""


class PoolSize(Settings):
    """Smallest and largest number of machines of a pool."""

    fewest: Count = 0
    most: Count

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.fewest > self.most:
            raise ValueError(f"fewest={self.fewest} is above most={self.most}")
        return self


class Pools(Settings):
    """The pools of workers. The head runs no work."""

    cpu: PoolSize
    """Spot machines for reading, embedding, assigning, fitting and evaluating."""
    gpu_spot: PoolSize
    """Spot GPU machines for the experts, requested first."""
    gpu_on_demand: PoolSize
    """On-demand GPU machines, used while no spot machine is available."""


class MachineType(Settings):
    """A machine type of a cloud, and its resources for Ray."""

    type: str
    cpus: PositiveInt
    gpus: Count = 0
    disk_gb: PositiveInt = 200


class AwsValues(Settings):
    """EC2."""

    region: str = "us-west-2"
    zones: str = "us-west-2a,us-west-2b,us-west-2c"
    """In order of preference."""
    head: MachineType
    cpu: MachineType
    gpu: MachineType
    head_instance_profile: str
    """ARN of an instance profile that may start and stop machines; docs/operations.md has its policy."""
    worker_instance_profile: str
    """ARN of an instance profile that may only read and write the bucket."""
    image_id: str | None = None
    """AMI with Docker and the NVIDIA driver; by default Ray's AMI for the region."""


class GcpValues(Settings):
    """Compute Engine."""

    project: str
    region: str = "us-central1"
    zone: str = "us-central1-a"
    head: MachineType
    cpu: MachineType
    gpu: MachineType
    head_service_account: str
    """May start and stop machines, and act as the workers' account."""
    worker_service_account: str
    """May only read and write the bucket."""
    cpu_disk_image: str
    """Disk image with Docker."""
    gpu_disk_image: str
    """Disk image with Docker and the NVIDIA driver."""


class PodSize(Settings):
    """Requests and limits of a pod."""

    cpus: PositiveInt
    memory_gib: PositiveInt
    shared_memory_gib: PositiveInt
    """Size of /dev/shm, where Ray keeps its objects; part of `memory_gib`."""
    gpus: Count = 0


class KubernetesValues(Settings):
    """KubeRay on GKE, EKS or another cluster."""

    namespace: Name = "mode-ray"
    service_account: Name = "mode-ray"
    service_account_annotations: dict[str, str] = Field(default_factory=dict)
    """For access to the bucket: `iam.gke.io/gcp-service-account` (GKE), `eks.amazonaws.com/role-arn` (EKS)."""
    token_secret: Name = "mode-ray-token"  # noqa: S105 - the name of a secret, not one
    """Secret with Ray's token under the key `auth_token`."""
    environment_secret: Name | None = None
    """Secret whose keys become variables of all pods, for example AWS_ACCESS_KEY_ID if there are no roles."""
    spot_label: dict[str, str] = Field(default_factory=lambda: {"cloud.google.com/gke-spot": "true"})
    """Label and taint of spot nodes: `{"eks.amazonaws.com/capacityType": "SPOT"}` on EKS."""
    gpu_node_label: dict[str, str] = Field(default_factory=dict)
    """Label of the nodes with the wanted GPU, for example `{"cloud.google.com/gke-accelerator": "nvidia-l4"}`."""
    head: PodSize
    cpu: PodSize
    gpu: PodSize


class SingleNode(Settings):
    """A cluster of one machine, reached by SSH."""

    address: str = "10.0.0.10"
    user: str = "ubuntu"


class Serving(Settings):
    """The HTTP service of the ensemble."""

    run: str = "run1"
    """The served run: a path below the bucket."""
    experts: PositiveInt = 4
    replicas: PositiveInt = 2
    """Smallest number of replicas of the router and of every expert."""
    most_replicas: PositiveInt = 8
    gpus_per_expert: Annotated[float, Field(ge=0.0)] = 0.25
    token_hashes: Strings = ()
    """SHA-256 (hex) of the accepted bearer tokens. If empty, the service is open."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.replicas > self.most_replicas:
            raise ValueError(f"replicas={self.replicas} is above most_replicas={self.most_replicas}")
        return self


class Alarms(Settings):
    """Thresholds of the alert rules."""

    memory_share: PositiveFloat = 0.9
    disk_percent: PositiveFloat = 85.0
    pending_node_minutes: PositiveInt = 20
    idle_gpu_minutes: PositiveInt = 30
    checkpoint_minutes: PositiveInt = 30
    """Should be several times `train.placement.checkpoint_interval_seconds`."""


class ClusterValues(Settings):
    """All values of the launch files."""

    name: Name = "mode-ray"
    bucket: BucketUri
    """Bucket of runs, data and configs: s3://… or gs://…, optionally with a prefix."""
    image: Images
    idle_minutes: PositiveInt = 5
    """An idle worker is released after this time."""
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
                raise ValueError(f"{place}.gpu.gpus is 0: the pool of the experts needs machines with GPUs")
        return self
