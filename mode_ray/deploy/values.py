"""The values of a `ray up` cluster: bucket, images, machine types and pools. Kubernetes uses the chart's."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from mode_ray.config.base import PositiveFloat, PositiveInt, Settings

Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
BucketUri = Annotated[str, Field(pattern=r"^(s3|gs)://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9._/-]*[A-Za-z0-9])?$")]
# After this time without a machine, Ray's autoscaler tries the next pool that fits. Ray's own default is an hour.
SPOT_TIMEOUT_SECONDS = 600
HEAD_GB, HEAD_GB_PER_RUN = 10.0, 0.75
"""Memory of the head: for Ray and the driver, and for each concurrent run. The chart has the same figures."""
OLDEST_DRIVER = 580
"""Major version of the oldest NVIDIA driver for CUDA 13, which torch from PyPI is built for."""
ImageId = Annotated[str, Field(pattern=r"^ami-[0-9a-f]+$")]
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


class HeadType(MachineType):
    """The machine type of the head."""

    memory_gb: PositiveInt | None = None
    """Checked against the training runs that the GPU pools allow at the same time; None is not checked."""


class AwsValues(Settings):
    """EC2."""

    region: str = "us-west-2"
    zones: str = "us-west-2a,us-west-2b,us-west-2c"
    """In order of preference."""
    head: HeadType
    cpu: MachineType
    gpu: MachineType
    head_instance_profile: str
    """ARN of an instance profile that may start and stop machines; docs/operations.md has its policy."""
    worker_instance_profile: str
    """ARN of an instance profile that may only read and write the bucket."""
    cpu_image_id: ImageId
    """AMI with Docker, for the head and the CPU machines."""
    gpu_image_id: ImageId
    """AMI with Docker, NVIDIA's container toolkit and a driver of version 580 or newer."""


class GcpValues(Settings):
    """Compute Engine."""

    project: str
    region: str = "us-central1"
    zone: str = "us-central1-a"
    head: HeadType
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


class SingleNode(Settings):
    """A cluster of one machine, reached by SSH."""

    address: str = "10.0.0.10"
    user: str = "ubuntu"


class Training(Settings):
    """The first run on these clusters."""

    run: str = "run1"
    """A path below the bucket."""
    experts: PositiveInt = 4


class Alarms(Settings):
    """Thresholds of the alert rules."""

    memory_share: PositiveFloat = 0.9
    disk_percent: PositiveFloat = 85.0
    pending_node_minutes: PositiveInt = 20
    idle_gpu_minutes: PositiveInt = 30
    checkpoint_minutes: PositiveInt = 30
    """Should be several times `train.placement.checkpoint_interval_seconds`."""
    webhook: str | None = None
    """URL that Alertmanager posts the alarms to. Without it they are only shown."""


class ClusterValues(Settings):
    """All values of the launch files."""

    name: Name = "mode-ray"
    bucket: BucketUri
    """Bucket of runs, data and configs: s3://… or gs://…, optionally with a prefix."""
    image: Images
    spot_timeout_seconds: PositiveInt = SPOT_TIMEOUT_SECONDS
    """A machine that does not come in this time is requested from the next pool that fits."""
    idle_minutes: PositiveInt = 5
    """An idle worker is released after this time."""
    pools: Pools
    aws: AwsValues
    gcp: GcpValues
    single_node: SingleNode = SingleNode()
    training: Training = Training()
    alarms: Alarms = Alarms()

    @property
    def concurrent_runs(self) -> int:
        """Training runs at the same time: one on each GPU machine."""
        return max(self.pools.gpu_spot.most, self.pools.gpu_on_demand.most)

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for place in ("aws", "gcp"):
            if getattr(self, place).gpu.gpus == 0:
                raise ValueError(f"{place}.gpu.gpus is 0: the pool of the experts needs machines with GPUs")
            memory_gb, needed = getattr(self, place).head.memory_gb, HEAD_GB + HEAD_GB_PER_RUN * self.concurrent_runs
            if memory_gb is not None and memory_gb < needed:
                raise ValueError(
                    f"{place}.head.memory_gb={memory_gb} is below the {needed:g} GB for {self.concurrent_runs} "
                    "concurrent runs: choose a larger head, or fewer GPU machines"
                )
        return self
