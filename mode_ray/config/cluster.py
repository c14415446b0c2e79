"""The sections `cluster`, `assign` and `drift`: the clustering, and the captions assigned to it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mode_ray.config.base import (
    ActorPool,
    LabelledPlacement,
    Placement,
    PositiveFloat,
    PositiveInt,
    Seed,
    Settings,
    Share,
)


class FineConfig(Settings):
    """Fine-grained clustering: m centers (paper section 3.2, step 1)."""

    centers: PositiveInt = 1024
    iterations: PositiveInt = 20
    """At most so many Lloyd steps. A balanced fit that then misses its balance (largest cluster 1.25 times the mean,
    imbalance factor 1.02) continues until its objective has converged, with at most as many steps again. The first
    quarter of the steps of a plain fit reads a quarter of the rows, if the sample has 400 rows a center."""
    init: Literal["kmeans++", "random"] = "kmeans++"
    spherical: bool = False
    balanced: bool = True
    """Fit with capacity prices, so that clusters have nearly equal sizes."""
    price_updates: PositiveInt = 40
    """Price updates in each Lloyd step."""
    price_rate: PositiveFloat = 0.04
    """Size of one price update, as a share of the mean squared distance."""
    tolerance: Annotated[float, Field(ge=0.0)] = 5e-4
    """Lloyd's iteration stops when the objective improves by less than this share."""


class CoarseConfig(Settings):
    """Coarse grouping of the centers into experts (paper section 3.2, step 2)."""

    experts: Annotated[tuple[int, ...], Field(strict=False)] = (4,)
    """Each number of experts n to make a map for. All maps share one fine clustering."""
    slack: Annotated[float, Field(ge=0.0)] = 0.1
    """A group may hold up to (1 + slack)/n of the rows."""
    iterations: PositiveInt = 50
    restarts: PositiveInt = 8


class ClusterPlacement(LabelledPlacement):
    """Resources of the clustering."""

    workers: PositiveInt = 1
    """Actors that hold the sample; 1 keeps it in the clustering's own task. The centers do not depend on this."""
    cpus: PositiveFloat = 1.0
    """CPUs of the task, and of each actor."""
    threads: PositiveInt = 2
    """Threads of the task, and of each actor."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs of the task or, with several `workers`, of each actor. The rows are then searched on the GPU. The centers
    equal those of a fit on CPUs up to rows that are equally far from two centers within rounding."""


class ClusterConfig(Settings):
    """Both clustering steps, or another run's clustering to reuse instead."""

    reuse: str | None = None
    """Directory of a finished clustering, for example another run's `clusters`. It is checked against the encoder and
    copied, and nothing is fitted. The fields of a fit (`fine`, `coarse`, `sample_rows`, `seed`) are then only used for
    the new centers of `mode-ray cluster extend`, and may change at any time. Former name: `standing`."""
    sample_rows: PositiveInt = 2_000_000
    """Rows that the fine centers are fitted on, drawn uniformly from the rows of all shards."""
    seed: Seed = 0
    fine: FineConfig = FineConfig()
    coarse: CoarseConfig = CoarseConfig()
    placement: ClusterPlacement = ClusterPlacement()

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.reuse is not None:
            return self
        for n in self.coarse.experts:
            if n < 1:
                raise ValueError(f"coarse.experts has n={n}: a group count is at least 1")
            if n > self.fine.centers:
                raise ValueError(
                    f"coarse.experts has n={n} but fine.centers is m={self.fine.centers}: "
                    "there cannot be more experts than fine centers"
                )
        if self.sample_rows < self.fine.centers:
            raise ValueError(f"sample_rows={self.sample_rows} is below fine.centers={self.fine.centers}")
        return self


class AssignConfig(Settings):
    """Nearest fine center of every caption."""

    rule: Literal["nearest", "priced"] = "nearest"
    """`nearest` is the paper's rule. `priced` adds the balancing prices to the squared distances."""
    pool: ActorPool = ActorPool()


class DriftConfig(Placement):
    """How assigned captions are compared with the sample of the fit. Not part of the fingerprint."""

    far_quantile: Share = 0.99
    """A caption is far if its squared distance is above this quantile of the fitted sample's distances. The clustering
    stores these quantiles: 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999."""
