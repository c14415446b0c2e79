"""All of a run's config: `RunConfig` has one section for each stage or command.

A run may be resumed with another `Placement`. A change of any other field is refused, with its name.
"""

from typing import Literal, Self

from pydantic import model_validator

from mode_ray.config.base import Placement, PositiveInt, Settings
from mode_ray.config.captions import CaptionsConfig, EmbedConfig, EncoderConfig, LimitsConfig
from mode_ray.config.cluster import AssignConfig, ClusterConfig, DriftConfig
from mode_ray.config.evaluate import EvaluateConfig, IndexConfig, RoutingConfig
from mode_ray.config.features import FeaturesConfig
from mode_ray.config.images import ImagesConfig
from mode_ray.config.serve import ServeConfig
from mode_ray.config.sweep import SweepConfig
from mode_ray.config.train import TrainConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location


class RayConfig(Placement):
    """How the driver reaches Ray."""

    address: str | None = None
    """`auto` or host:port joins a cluster. Without it, one is started on this machine unless RAY_ADDRESS is set."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of a cluster started here; by default all of this machine."""
    object_store_bytes: PositiveInt | None = None
    dashboard: bool = True
    log_to_driver: bool = False
    """Copy the workers' output to the driver's."""
    log_format: Literal["text", "json"] = "text"
    """`json`: a run's log lines are JSON objects on standard error, with run, stage, shard and expert. The environment
    variable MODE_RAY_LOG_FORMAT overrides it."""


class RunConfig(Settings):
    """The config of a run. docs/config.md lists every field with its default."""

    run: str
    """The run directory: a local path, s3:// or gs:// URI."""
    captions: CaptionsConfig
    images: ImagesConfig = ImagesConfig()
    limits: LimitsConfig = LimitsConfig()
    encoder: EncoderConfig = EncoderConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    assign: AssignConfig = AssignConfig()
    drift: DriftConfig = DriftConfig()
    features: FeaturesConfig = FeaturesConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    routing: RoutingConfig = RoutingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()
    serve: ServeConfig = ServeConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _experts_have_a_map(self) -> Self:
        maps = self.cluster.coarse.experts
        if self.trains and self.cluster.reuse is None and self.train.experts not in maps:
            raise ValueError(
                f"train.experts={self.train.experts} has no coarse map: cluster.coarse.experts is {list(maps)}"
            )
        return self

    @property
    def trains(self) -> bool:
        """Whether the config says how long to train; without, only the stages up to `assign` can run."""
        return self.train.dense_samples is not None

    @property
    def uses_features(self) -> bool:
        """Whether training reads the features of locked trunks instead of images."""
        return self.train.data.mode == "features"

    @property
    def reuses_clustering(self) -> bool:
        """Whether the clustering of another run is reused instead of fitting one."""
        return self.cluster.reuse is not None

    @property
    def directory(self) -> Location:
        """The run directory."""
        try:
            return Location.parse(self.run)
        except UsageError as error:
            raise UsageError(f"run: {error}") from None
