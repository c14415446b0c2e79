"""The config of the train stage: model, optimizer, loss, data, budgets, and where and how fast it trains."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mode_ray.config.base import Placement, PositiveFloat, PositiveInt, Seed, Settings, Share

Control = Literal["dense", "dense_equal_total", "full", "random"]
ReusableModels = Literal["seed", "dense", "experts"]


class ModelConfig(Settings):
    """The CLIP architecture of every expert."""

    architecture: str = "ViT-B-16"
    """An open_clip architecture name, or a folder with an `open_clip_config.json` (`package:NAME/FOLDER` too)."""
    pretrained: str | None = None
    """Start from this instead of training a seed: an open_clip tag or checkpoint file of the architecture; with a
    folder as architecture, `folder` takes the weights that lie in it; or a Hugging Face id (`hf-hub:ORG/NAME`) of an
    open_clip model, which brings its own config and tokenizer, so that `architecture` counts for nothing."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"


class OptimizerConfig(Settings):
    """AdamW under a cosine schedule that is counted in samples."""

    learning_rate: PositiveFloat = 5e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.2
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    epsilon: PositiveFloat = 1e-6
    warmup_samples: Annotated[int, Field(ge=0)] = 2000 * 32768
    gradient_norm_clip: PositiveFloat | None = None


class LossConfig(Settings):
    """The contrastive loss, open_clip's own."""

    kind: Literal["clip", "siglip"] = "clip"
    """`siglip`: the pairwise sigmoid loss, with a learned bias."""
    mask_equal_captions: bool = False
    """Do not count pairs of a batch with the same caption as one another's negatives (`clip` only)."""


class TrainDataConfig(Settings):
    """How the pairs of a training set are reached, and in which order."""

    mode: Literal["index", "materialised"] = "index"
    """`index`: pairs are fetched from the source shards, nothing is copied. `materialised`: each training set is first
    copied into shards of its own, balanced and shuffled."""
    block_pairs: PositiveInt = 1
    """Neighbours in their shard that stay together when an epoch is shuffled, so that one request fetches them. 1
    shuffles every pair alone, best for local disks; 16 to 64 suits object stores and large batches."""
    pairs_per_shard: PositiveInt = 10_000
    """Of materialised shards, at most; there are at least as many shards as workers times loader workers."""


class TrainPlacement(Placement):
    """Resources of the training runs, how many go on at once, and what spares memory or time."""

    workers_per_run: Annotated[int, Field(ge=0)] = 1
    """Data-parallel workers of one run; 0 trains in the launcher's process, without Ray's worker group."""
    max_workers_per_run: PositiveInt | None = None
    """Above `workers_per_run`: elastic runs, which grow to as many workers as the cluster has room for."""
    resize_interval_seconds: PositiveFloat = 60.0
    """How often an elastic run looks for more room."""
    concurrent_runs: PositiveInt = 1
    """Runs at the same time; the others wait."""
    cpus_per_worker: PositiveFloat = 1.0
    use_gpu: bool = False
    gpus_per_worker: PositiveFloat = 1.0
    """With `use_gpu`; fractions let small experts share a GPU."""
    accelerator_type: str | None = None
    """Ray's name of the GPU to train on, for example `A100`."""
    label_selector: Annotated[dict[str, str], Field(strict=False)] = Field(default_factory=dict)
    """Node labels that every training worker asks for, for example `{"ray.io/market-type": "spot"}`."""
    launcher_label_selector: Annotated[dict[str, str], Field(strict=False)] = Field(default_factory=dict)
    """Node labels for the launcher tasks, for example the head's; by default the driver's own node."""
    threads_per_worker: PositiveInt = 1
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read and decode for one worker; 0 does so in threads of the worker itself."""
    checkpoint_interval_seconds: PositiveFloat = 600.0
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures that Ray Train repairs within one launch."""
    max_preemptions: Annotated[int, Field(ge=-1)] = -1
    """Lost spot machines that Ray Train repairs, not counted as failures; -1 for any number."""
    max_launches: PositiveInt = 3
    """Launches of one run by the scheduler: a lost launcher or controller costs one."""
    nonfinite: Literal["stop", "rollback"] = "stop"
    """Where loss or gradient is not a finite number the weights are not updated. `stop` ends the run; `rollback` goes
    back to the last checkpoint and leaves that batch out."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """Rollbacks of one run before it ends."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several workers share a model: a copy each (`ddp`), or shards of one (`fsdp`, for big towers)."""
    micro_batch_size: PositiveInt | None = None
    """Samples that go through a worker's model at once; the batch is accumulated by cached features (GradCache), with
    the same gradients. By default all of a worker's part."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass: less memory, more time."""
    compile: bool = False
    """torch.compile the model."""
    text_length_groups: PositiveInt = 4
    """Captions of a batch are sorted into this many groups by length and each is padded to its own longest: the same
    features, less work. Only for causal text towers; 1 pads all to the context length."""
    log_interval_steps: PositiveInt = 20
    trackers: Annotated[tuple[Literal["wandb", "mlflow"], ...], Field(strict=False)] = ()
    """Where to log besides TensorBoard; the package must be installed on the workers."""
    tracker_project: str = "mode_ray"
    """Project (W&B) or experiment (MLflow) of the runs."""

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
    """Seed model, dense baseline and experts; budgets are counted in samples seen."""

    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    data: TrainDataConfig = TrainDataConfig()
    experts: PositiveInt = 4
    """n: which coarse map the experts are trained for."""
    dense_samples: PositiveInt
    """Samples the dense baseline sees; the paper's 32 epochs of the data."""
    seed_share: Share = 27 / 32
    """Share of `dense_samples` (and of the schedule) that the common seed model takes."""
    reuse: str | None = None
    """Another run's directory: its seed, dense baseline and experts are taken over, unchanged, where they are models
    of this config; only what it does not have is trained (`mode-ray train add`)."""
    reuse_models: Annotated[tuple[ReusableModels, ...], Field(strict=False)] = ("seed", "dense", "experts")
    """Which of its models may be taken over. Without `experts`, all experts are trained anew: for example with another
    `expert_budget`."""
    expert_budget: Literal["shared", "full"] = "shared"
    """`shared`: the experts together see the rest. `full`: every expert sees as much as the rest."""
    batch_size: PositiveInt = 32768
    """Global batch, over all workers of a run."""
    out_of_cluster_share: Share = 0.02
    """Share of an expert's pairs that are drawn from the other clusters."""
    controls: Annotated[tuple[Control, ...], Field(strict=False)] = ("dense",)
    """What else to train, to compare with. `dense`: one model on all data for `dense_samples`.
    `dense_equal_total`: the same for as many samples as seed and experts see together, on a schedule of its own;
    (27 + 5n)/32 of `dense_samples` with the paper's seed share and `expert_budget: full`. `full`: n models from the
    seed, each on all data in an order of its own. `random`: n models from the seed on rows dealt at random, in the
    experts' sizes."""
    seed: Seed = 0
    placement: TrainPlacement = TrainPlacement()

    @model_validator(mode="before")
    @classmethod
    def _controls_are_a_list(cls, values: Any) -> Any:  # noqa: ANN401  (pydantic's own contract)
        """Configs and runs of before are told what to write instead."""
        before = {"dense": "dense", "random_control": "random"}
        if not isinstance(values, dict) or not (given := [name for name in before if name in values]):
            return values
        asked = [before[name] for name in before if values.get(name, name == "dense")]
        raise ValueError(f"{' and '.join(given)}: now one list; write controls: [{', '.join(asked)}] instead")

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
                    "placement.workers_per_run and max_workers_per_run allow: it cannot be dealt evenly"
                )
        if self.loss.kind == "siglip" and self.loss.mask_equal_captions:
            raise ValueError("loss.mask_equal_captions goes with loss.kind=clip only")
        return self
