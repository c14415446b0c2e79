"""The section `train`: model, optimizer, loss, data, budgets and resources."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from mode_ray.config.base import (
    FileName,
    FolderName,
    LabelledPlacement,
    PositiveFloat,
    PositiveInt,
    Seed,
    Settings,
    Share,
)
from mode_ray.errors import UsageError

Control = Literal["dense", "dense_equal_total", "wide", "clustered", "full", "random"]
ReusableModels = Literal["seed", "dense", "experts"]
FOLDER_WEIGHTS = "folder"
"""Value of `train.model.pretrained`: the weights in the architecture's folder."""
MARKET_LABEL, ON_DEMAND = "ray.io/market-type", "on-demand"
"""The node label by which Ray distinguishes spot from on-demand machines."""
_WARMUP_PART = 20


class UnlockedGroups(Settings):
    """A tower that is locked but for its last layer groups."""

    groups: PositiveInt
    """The number of layer groups that stay trainable, as open_clip counts them."""


TowerLock = Literal["none", "all"] | UnlockedGroups


class LockConfig(Settings):
    """Which parts of the towers training leaves unchanged (LiT, arXiv 2111.07991). Projections stay trainable."""

    image: TowerLock = "none"
    """`all`: the whole trunk. `{groups: 2}`: all but its last two layer groups, as by open_clip's
    `--lock-image-unlocked-groups 2`."""
    text: TowerLock = "none"
    """As `image`; the groups are those of open_clip's `--lock-text-unlocked-layers`."""

    @property
    def locks_both(self) -> bool:
        """Whether a part of each tower is locked."""
        return self.image != "none" and self.text != "none"


class TowersConfig(Settings):
    """Pretrained weights of single towers, for architectures without a pretrained CLIP."""

    image: FileName | None = None
    """A state dict of the image trunk, a network of timm: a path, a URI, or `package:NAME/FILE`. Names of another
    library are accepted if the tensors have the same order."""
    text: FolderName | None = None
    """The folder of a Hugging Face encoder, local or `package:NAME/FOLDER`, for the text tower."""


class ModelConfig(Settings):
    """The CLIP architecture of every expert."""

    architecture: FolderName = "ViT-S-32"
    """An open_clip architecture name, or a folder with an `open_clip_config.json` (a path, `~/…`, s3:// or gs:// URI,
    or `package:NAME/FOLDER`). The paper's is ViT-B-16."""
    pretrained: Literal["folder"] | FileName | None = None
    """Start from this model instead of training a seed. One of: an open_clip tag of the architecture; a checkpoint
    file of the architecture (a path, `~/…`, s3:// or gs:// URI); `folder`, for the weights inside a folder given as
    architecture; a Hugging Face id (`hf-hub:ORG/NAME`) of an open_clip model, which has its own config and tokenizer,
    so that `architecture` is ignored. It is checked before the first stage."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` suits GPUs, and CPUs with AMX or AVX-512 BF16. Other CPUs are slow with it."""
    towers: TowersConfig = TowersConfig()
    lock: LockConfig = LockConfig()
    added: ClassVar[frozenset[str]] = frozenset({"towers", "lock"})

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> Self:
        if self.pretrained is not None and self.towers != TowersConfig():
            raise ValueError("pretrained has the weights of both towers: leave out either pretrained or towers")
        return self


class OptimizerConfig(Settings):
    """AdamW with a cosine schedule that counts samples."""

    learning_rate: PositiveFloat = 5e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.2
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    epsilon: PositiveFloat = 1e-6
    warmup_samples: Annotated[int, Field(ge=0)] | None = None
    """By default a twentieth of `train.dense_samples`. The paper's is 65,536,000 (2000 batches)."""
    gradient_norm_clip: PositiveFloat | None = None


class LossConfig(Settings):
    """The contrastive loss, open_clip's own."""

    kind: Literal["clip", "siglip"] = "clip"
    """`siglip`: the pairwise sigmoid loss, with a learned bias."""
    mask_equal_captions: bool = False
    """Pairs of a batch with the same caption are not used as negatives of each other (`clip` only)."""


class TrainDataConfig(Settings):
    """How the pairs of a training set are read, and in which order."""

    mode: Literal["auto", "index", "materialised", "features"] = "auto"
    """`index`: pairs are read from the source shards, and nothing is copied. `materialised`: each training set is
    first copied into shards of its own, balanced and shuffled. `auto`: `materialised` with `use_gpu` if the pairs are
    in an object store, otherwise `index`. `features`: the stage `features` runs the locked towers over all pairs
    once, and training reads their features; it needs `train.model.lock` for both towers."""
    block_pairs: PositiveInt = 1
    """Neighbouring pairs of a source shard that stay together when they are shuffled: in every epoch in the mode
    `index`, once while copying in the mode `materialised`. One request reads a block. 1 shuffles single pairs; 16 to
    64 suits the mode `index` with object stores and large batches."""
    read_block_pairs: PositiveInt | None = 512
    """In the mode `materialised`, neighbouring pairs of the shuffled copy that stay together in every epoch, so that
    reading is nearly sequential: one request reads up to this many pairs. None: as many as `block_pairs`."""
    pairs_per_shard: PositiveInt = 10_000
    """Most pairs of a materialised shard. There are at least as many shards as workers times loader workers."""
    added: ClassVar[frozenset[str]] = frozenset({"read_block_pairs"})


class TrainPlacement(LabelledPlacement):
    """Resources of the training runs, how many run at once, and what saves memory or time."""

    workers_per_run: Annotated[int, Field(ge=0)] = 1
    """Data-parallel workers of one run. 0 trains in the launcher's process, without Ray's worker group."""
    max_workers_per_run: PositiveInt | None = None
    """If set, runs are elastic: they grow up to this many workers as the cluster has room."""
    resize_interval_seconds: PositiveFloat = 60.0
    """How often an elastic run looks for more room."""
    concurrent_runs: PositiveInt = 1
    """Training runs at the same time. The others wait."""
    cpus_per_worker: PositiveFloat = 1.0
    use_gpu: bool = False
    gpus_per_worker: PositiveFloat = 1.0
    """With `use_gpu`; fractions let small experts share a GPU."""
    accelerator_type: str | None = None
    """Ray's name of the GPU to train on, for example `A100`."""
    on_demand_after_seconds: PositiveFloat | None = None
    """If a run waits this long for machines, it is launched again with the node label `ray.io/market-type: on-demand`,
    and resumes from its checkpoint. If none comes in this time either, it returns to `label_selector`. null never
    does this."""
    launcher_label_selector: Annotated[dict[str, str], Field(strict=False)] = Field(default_factory=dict)
    """Node labels for the launcher tasks, for example the head's; by default the driver's own node."""
    threads_per_worker: PositiveInt = 1
    loader_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Processes that read and decode for one worker. 0 uses threads of the worker itself. `auto`: with `use_gpu` one
    less than `cpus_per_worker`, but at least 1; otherwise 0."""
    read_ahead_bytes: PositiveInt = 4_000_000_000
    """Most memory of one worker for batches that are loaded in advance. Batches of loader processes are in the shared
    memory of the container (`/dev/shm`): it needs this much for every worker on the machine."""
    checkpoint_interval_seconds: PositiveFloat = 600.0
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Worker failures without a newer checkpoint that are repaired. A newer checkpoint resets the count. -1 for any
    number."""
    max_preemptions: Annotated[int, Field(ge=-1)] = -1
    """Preempted machines that Ray Train recovers from, not counted as failures. -1 for any number."""
    max_launches: PositiveInt = 3
    """Launches of one run by the scheduler without a newer checkpoint. A lost launcher or controller costs one."""
    nonfinite: Literal["stop", "rollback"] = "stop"
    """What happens if loss or gradient is not a finite number; the weights are never updated with it. `stop` ends the
    run. `rollback` returns to the last checkpoint and skips that batch."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """Rollbacks of one run before it ends."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each worker has a copy of the model. `fsdp`: the workers hold shards of one, for big towers."""
    micro_batch_size: PositiveInt | None = None
    """Samples that go through a worker's model at once. The batch is accumulated by cached features (GradCache), with
    the same gradients. By default a worker's whole part of the batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    gradient_reduction: Literal["float32", "bfloat16"] = "float32"
    """Type in which workers exchange gradients. `bfloat16` halves the traffic and rounds them."""
    process_group_timeout_seconds: PositiveFloat = 600.0
    """How long workers wait for each other in one collective operation before the run fails and restarts."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the model with `torch.compile`. `auto`: on GPUs, if the machine has a C compiler."""
    text_length_groups: PositiveInt = 4
    """Captions of a batch are sorted into this many groups by length, and each group is padded to its longest caption:
    the same features for less work. Only for causal text towers. 1 pads all to the context length."""
    log_interval_steps: PositiveInt = 20
    trackers: Annotated[tuple[Literal["wandb", "mlflow"], ...], Field(strict=False)] = ()
    """Trackers besides TensorBoard. Their packages must be installed on the workers."""
    tracker_project: str = "mode_ray"
    """Project (W&B) or experiment (MLflow) of the runs."""

    @property
    def loader_processes(self) -> int:
        """`loader_workers` as a number."""
        if self.loader_workers != "auto":
            return self.loader_workers
        return max(1, int(self.cpus_per_worker) - 1) if self.use_gpu else 0

    @model_validator(mode="after")
    def _gpu_needs_a_worker(self) -> Self:
        if self.use_gpu and self.workers_per_run == 0:
            raise ValueError(
                "use_gpu needs workers_per_run above 0: the launcher's process has no GPU; set workers_per_run: 1"
            )
        return self

    @property
    def on_demand(self) -> Self:
        """The placement of a run that requests on-demand machines only."""
        return self.model_copy(update={"label_selector": {**self.label_selector, MARKET_LABEL: ON_DEMAND}})

    @model_validator(mode="after")
    def _on_demand(self) -> Self:
        if self.on_demand_after_seconds is None:
            return self
        if self.workers_per_run == 0:
            raise ValueError(
                "on_demand_after_seconds needs workers_per_run above 0: the launcher's process never waits"
            )
        if self.label_selector.get(MARKET_LABEL) == ON_DEMAND:
            raise ValueError(
                f"on_demand_after_seconds has no effect, because label_selector has {MARKET_LABEL}: {ON_DEMAND}; "
                "remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _elastic(self) -> Self:
        if self.max_workers_per_run is not None and self.workers_per_run == 0:
            raise ValueError("max_workers_per_run needs workers_per_run above 0: the launcher's process cannot grow")
        if self.max_workers_per_run is not None and self.max_workers_per_run < self.workers_per_run:
            raise ValueError(
                f"max_workers_per_run={self.max_workers_per_run} is below workers_per_run={self.workers_per_run}"
            )
        return self


class TrainConfig(Settings):
    """Seed model, dense baseline and experts. Budgets count samples seen."""

    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    data: TrainDataConfig = TrainDataConfig()
    experts: PositiveInt = 4
    """Number of experts n: one of `cluster.coarse.experts`."""
    dense_samples: PositiveInt | None = None
    """Samples that the dense baseline sees; in the paper 32 epochs of the data. Required for training; the stages
    before do without."""
    seed_share: Share = 27 / 32
    """Share of `dense_samples`, and of the schedule, that the common seed model is trained for."""
    seed_from_pretrained: bool = False
    """With `model.pretrained`: the seed begins with these weights. By default they take its place, and the experts
    begin with them."""
    expert_schedule: Literal["continue", "restart"] = "continue"
    """Learning rate of the experts, and of controls that continue the seed. `continue`: one schedule for seed and
    expert, as in the paper; at a seed share of 27/32, experts begin at about 6 % of the peak rate. `restart`: it is
    warmed up and decayed again over the expert's own samples, with the same share of warm-up as the dense run."""
    reuse: str | None = None
    """Directory of another run. Its seed, dense baseline and experts are copied if they are models of this config.
    Only the other models are trained (`mode-ray train add`). Former name: `standing`."""
    reuse_models: Annotated[tuple[ReusableModels, ...], Field(strict=False)] = ("seed", "dense", "experts")
    """Which models of that run may be reused. Without `experts`, all experts are trained, for example with another
    `expert_budget`. Former name: `standing_models`."""
    expert_budget: Literal["shared", "full"] = "shared"
    """`shared`: the experts together see the remaining samples. `full`: every expert sees that many."""
    batch_size: PositiveInt = 64
    """Global batch, over all workers of a run; in the paper 32,768. At most `dense_samples`."""
    out_of_cluster_share: Share = 0.02
    """Share of an expert's pairs that are drawn from the other clusters."""
    controls: Annotated[tuple[Control, ...], Field(strict=False)] = ("dense",)
    """Further models to train, for comparison. `dense`: one model on all data for `dense_samples`.
    `dense_equal_total`: the same for as many samples as seed and experts see together, on a schedule of its own;
    (27 + 5n)/32 of `dense_samples` with the paper's seed share and `expert_budget: full`. `full`: n models from the
    seed, each on all data in an order of its own. `random`: n models from the seed on rows distributed at random, in
    the experts' sizes. `wide`: as `dense`, but with n times the embedding dimension, so that it has as many trained
    parameters as all experts; for locked towers with linear projections. `clustered`: as `dense`, but every batch is
    from one expert's clusters; batches are drawn in proportion to the experts' pairs."""
    seed: Seed = 0
    placement: TrainPlacement = TrainPlacement()
    added: ClassVar[frozenset[str]] = frozenset({"seed_from_pretrained", "expert_schedule"})

    @model_validator(mode="before")
    @classmethod
    def _controls_are_a_list(cls, values: Any) -> Any:  # noqa: ANN401  (pydantic's own contract)
        """Refuse the former fields `dense` and `random_control`, with what to write instead."""
        before = {"dense": "dense", "random_control": "random"}
        if not isinstance(values, dict) or not (given := [name for name in before if name in values]):
            return values
        asked = [before[name] for name in before if values.get(name, name == "dense")]
        raise ValueError(f"{' and '.join(given)}: now one list; write controls: [{', '.join(asked)}] instead")

    @property
    def budget_samples(self) -> int:
        """`dense_samples`, for what trains.

        Raises:
            UsageError: It is not set.
        """
        if self.dense_samples is None:
            raise UsageError(
                "train.dense_samples is not set: set it to the samples that one dense model would see, for example "
                "32 times the number of pairs, or run the stages before training only (`--until assign`)"
            )
        return self.dense_samples

    @property
    def has_seed(self) -> bool:
        """Whether a seed is trained: not if its share is 0, or if pretrained weights take its place."""
        replaced = self.model.pretrained is not None and not self.seed_from_pretrained
        return self.seed_share > 0.0 and not replaced

    @property
    def warmup_samples(self) -> int:
        """`optimizer.warmup_samples`, or its default for this budget."""
        given = self.optimizer.warmup_samples
        return self.budget_samples // _WARMUP_PART if given is None else given

    @field_validator("controls", "reuse_models")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"names one of them twice: {', '.join(names)}")
        return names

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if self.seed_share >= 1.0:
            raise ValueError("seed_share must be below 1: nothing would be left for the experts")
        fewest = max(1, self.placement.workers_per_run)
        for workers in range(fewest, (self.placement.max_workers_per_run or fewest) + 1):
            if self.batch_size % workers:
                raise ValueError(
                    f"batch_size={self.batch_size} is not a multiple of {workers}, a number of workers that "
                    "placement.workers_per_run and max_workers_per_run allow: the batch cannot be split evenly"
                )
        if self.seed_from_pretrained and self.model.pretrained is None:
            raise ValueError("seed_from_pretrained needs model.pretrained: the weights that the seed begins with")
        if self.data.mode == "features" and not self.model.lock.locks_both:
            raise ValueError(
                "data.mode=features needs model.lock.image and model.lock.text: a tower that is trained as a whole "
                "has no features to compute once"
            )
        if "wide" in self.controls and (not self.model.lock.locks_both or self.model.pretrained is not None):
            raise ValueError(
                "the control wide needs model.lock.image and model.lock.text, and no model.pretrained: only new "
                "linear projections of locked towers can be made n times as wide; leave it out of controls"
            )
        if self.loss.kind == "siglip" and self.loss.mask_equal_captions:
            raise ValueError("loss.mask_equal_captions goes with loss.kind=clip only")
        return self
