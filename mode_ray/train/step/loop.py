"""The training loop, without Ray: open_clip's model and losses, AdamW, a schedule counted in samples."""

import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import astuple, dataclass, field
from functools import cached_property, partial

import torch
import torch.distributed

from mode_ray.config.train import TrainConfig
from mode_ray.errors import DataError, TrainingError, UsageError
from mode_ray.models.locking import set_training
from mode_ray.models.pixels import PixelNormaliser
from mode_ray.models.trunks import divide
from mode_ray.train.learning_rate import learning_rate
from mode_ray.train.plan import Trial
from mode_ray.train.step.batch import LoaderFactory, TextPreparation, TrainBatch, batches_on_device
from mode_ray.train.step.batch_counts import BatchCounts, all_gather_sum
from mode_ray.train.step.features import FeatureModel
from mode_ray.train.step.gradients import Gradients
from mode_ray.train.step.losses import ContrastiveLoss
from mode_ray.train.step.parallel import MOST_GRAPHS, ParallelModel, compiled_graphs, has_batch_norm
from mode_ray.train.step.rank import ONLY_RANK, Rank
from mode_ray.train.step.schedule import progress, warmup_share
from mode_ray.train.step.text_groups import causal_text

_logger = logging.getLogger(__name__)
_MAX_LOGIT_SCALE = math.log(100)
_BAD_IMAGES_TOLERATED = 10
# GPU kernels and compiled graphs are fast for these lengths. On the CPU, shorter captions are always faster.
_LENGTH_MULTIPLE = 8


class NonFiniteError(TrainingError):
    """The loss of a batch or the norm of its gradients is not finite. The weights are unchanged.

    Attributes:
        samples_seen: Position of the batch: the number of samples before it.
    """

    def __init__(self, message: str, samples_seen: int) -> None:
        super().__init__(message, samples_seen)
        self.samples_seen = samples_seen

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class LoopState:
    """The progress of a run. It is stored in every checkpoint, so that it rolls back with the weights.

    With several ranks the counts of batches (`bad_images`, `first_bad_image`, `ledger`) are those of the last logged
    point or snapshot.

    Attributes:
        samples_seen: Samples of the whole run, over all ranks; also the loader's cursor.
        history: Logged points: samples, loss, learning_rate, logit_scale, gradient_norm, samples_per_second,
            data_wait_share.
        bad_images: Number of images that could not be decoded.
        first_bad_image: Error message of the first one.
        ledger: Sum of the ledgers of all batches trained on, modulo 2^63.
        skipped: Positions of the batches that were skipped.
    """

    samples_seen: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    bad_images: int = 0
    first_bad_image: str = ""
    ledger: int = 0
    skipped: list[int] = field(default_factory=list)

    @property
    def counts(self) -> BatchCounts:
        """The counts of batches, over all ranks."""
        return BatchCounts(self.bad_images, self.first_bad_image, self.ledger)

    @counts.setter
    def counts(self, counts: BatchCounts) -> None:
        self.bad_images, self.first_bad_image, self.ledger = astuple(counts)


@dataclass(frozen=True)
class Snapshot:
    """A run between two steps, in main memory. Training may continue while it is written.

    Attributes:
        weights: Whole weights by the bare model's names; empty on ranks above 0.
        serialise_state: Returns `state`. It takes seconds for a large model, so the thread that writes calls it.
    """

    weights: Mapping[str, torch.Tensor]
    serialise_state: Callable[[], bytes]

    @cached_property
    def state(self) -> bytes:
        """Optimizer and loop state for `load_state_on_all_ranks`; complete on rank 0 only."""
        return self.serialise_state()


class TrainLoop:
    """Trains one model for one trial.

    Args:
        module: The bare open_clip model; it is moved to the device, wrapped and compiled as `config.placement` says.
        trial: Samples and schedule.
        config: Batch, loss, optimizer, precision, placement.
        max_bad_image_share: The run fails above this share of undecodable images.
        rank: This process; several processes need an initialised process group.
        device: Device to train on; by default the module's.

    Attributes:
        state: The progress of the run.
        device: Device to train on.
        prepare_texts: Groups the captions of a batch. A loader that calls it saves the step this work.
        trunk_hash: Hash of the locked weights if the batches hold features of the trunks, else None.

    Raises:
        UsageError: The model does not support the loss or micro-batches.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        trial: Trial,
        config: TrainConfig,
        max_bad_image_share: float,
        rank: Rank = ONLY_RANK,
        device: torch.device | None = None,
    ) -> None:
        self.state = LoopState()
        # Counts of this rank that are not in the state yet.
        self._own = BatchCounts()
        self._skipped: set[int] = set()
        self._trial = trial
        self._config = config
        self._max_bad_image_share = max_bad_image_share
        self._rank = rank
        self.device = device or next(module.parameters()).device
        placement = config.placement
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where a product is in float32
        multiple = _LENGTH_MULTIPLE if placement.compile is True or self.device.type != "cpu" else 1
        module = module.to(self.device)
        set_training(module)
        divided = divide(module) if config.data.mode == "features" else None
        self.trunk_hash = None if divided is None else divided.trunk_hash
        features = FeatureModel(module, causal_text(module, placement.text_length_groups, multiple), divided)
        _check(features, config)
        self._model = ParallelModel(features, placement, self.device, rank.world_size)
        self._optimizer = _adamw(features, config)
        precision = torch.bfloat16 if config.model.precision == "bfloat16" else torch.float32
        self.prepare_texts = TextPreparation(features.text_grouping, placement.micro_batch_size)
        normalise = PixelNormaliser(module, self.device, precision)
        self._gradients = Gradients(self._model, ContrastiveLoss(config.loss, rank), normalise, self.prepare_texts)
        self._warmup = warmup_share(trial, config.warmup_samples, config.budget_samples)
        self._gradient_norm = 0.0
        self._warned_of_graphs = False

    def run(
        self,
        loader: LoaderFactory,
        on_log: Callable[[dict[str, float]], None],
        after_step: Callable[[], None],
    ) -> None:
        """Train until the trial's samples are seen.

        Args:
            loader: Makes a loader that begins at the given sample.
            on_log: Called with every logged point.
            after_step: Called after every step.

        Raises:
            NonFiniteError: The loss or a gradient of a batch is not finite; the run may continue after `skip`.
            DataError: Too many images cannot be decoded.
        """
        steps, began, waited = 0, time.monotonic(), 0.0
        batches = batches_on_device(loader(self.state.samples_seen), self.device)
        while self.state.samples_seen < self._trial.samples:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            if self.state.samples_seen in self._skipped:
                self.state.skipped.append(self.state.samples_seen)
                self.state.samples_seen += self._config.batch_size
                continue
            loss = self.step(batch)
            steps += 1
            last = self.state.samples_seen >= self._trial.samples
            if steps % self._config.placement.log_interval_steps == 0 or last:
                seconds = time.monotonic() - began
                self._all_gather_counts()
                self._log(loss, steps * self._config.batch_size / seconds, waited / seconds, on_log)
                steps, began, waited = 0, time.monotonic(), 0.0
            after_step()

    def step(self, batch: TrainBatch) -> float:
        """One optimizer step on one global batch. Collective: every rank passes its part.

        Returns:
            The loss, averaged over the ranks.

        Raises:
            NonFiniteError: The loss or a gradient is not finite. Every rank raises it, and nothing has changed.
            DataError: Too many images cannot be decoded.
        """
        if batch.bad_images:
            # One rank alone may reach the limit. `_all_gather_counts` checks the counts of all ranks.
            counts = self.state.counts + self._own + _counts_of(batch)
            self._check_bad_images(counts, self.state.samples_seen + self._config.batch_size)
        optimizer = self._config.optimizer
        # A step's rate is that of the samples it completes: the rate of the first step is not zero.
        at = progress(self._trial, self.state.samples_seen + self._config.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(optimizer.learning_rate, at, self._warmup)
        self._optimizer.zero_grad(set_to_none=True)
        world_size = self._rank.world_size
        first = self.state.samples_seen + self._rank.number * self._config.batch_size // world_size
        loss = self._gradients.compute(batch, seed=first)
        if world_size > 1:
            torch.distributed.all_reduce(loss)
            loss /= world_size
        # The step waits for the device only here.
        numbers: list[float] = torch.stack([loss, self._model.finish_gradients_on_all_ranks()]).tolist()
        value, norm = numbers
        self._check_finite(value, norm)
        if optimizer.gradient_norm_clip is not None and norm > optimizer.gradient_norm_clip:
            self._model.scale_gradients(optimizer.gradient_norm_clip / norm)
        self._optimizer.step()
        with torch.no_grad():
            self._model.features.clip.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        self._gradient_norm = norm
        self.state.samples_seen += self._config.batch_size
        self._own += _counts_of(batch)
        if world_size == 1:  # nothing to gather: the state is always up to date
            self._all_gather_counts()
        return value

    def skip(self, position: int) -> None:
        """Do not train on the batch that begins at this position of the run's samples."""
        self._skipped.add(position)

    def gather_snapshot(self) -> Snapshot:
        """Weights, optimizer and loop state of the whole run. Collective: every rank calls it after the same step."""
        self._all_gather_counts()
        weights = self._model.gather_weights()
        optimizer = self._model.gather_optimizer_state(self._optimizer)
        return Snapshot(weights, partial(_serialised, {"optimizer": optimizer, "loop": deepcopy(vars(self.state))}))

    def load_weights_on_all_ranks(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load the weights of a snapshot, taken with any number of ranks. Collective."""
        self._model.load_weights_on_all_ranks(weights)

    def load_state_on_all_ranks(self, data: bytes, *, continues: bool) -> None:
        """Load the optimizer state and, with `continues` (the same run, not its parent), the loop state."""
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self._model.load_optimizer_state_on_all_ranks(self._optimizer, stored["optimizer"])
        if continues:
            self.state = LoopState(**stored["loop"])
            self._own = BatchCounts()

    def _check_bad_images(self, counts: BatchCounts, seen: int) -> None:
        if counts.bad_images > max(_BAD_IMAGES_TOLERATED, self._max_bad_image_share * seen):
            raise DataError(
                f"{self._trial.name}: {counts.bad_images} of {seen} images cannot be decoded, more than "
                f"limits.max_bad_image_share={self._max_bad_image_share} allows; first: {counts.first_bad_image}"
            )

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradients is {norm}"
        raise NonFiniteError(
            f"{self._trial.name}: {what} after {self.state.samples_seen} samples; lower "
            "train.optimizer.learning_rate, or skip such batches with train.placement.nonfinite=rollback",
            self.state.samples_seen,
        )

    def _all_gather_counts(self) -> None:
        """Add the counts of every rank to the state of the run. Collective."""
        self.state.counts += all_gather_sum(self._own, self._rank.world_size)
        self._own = BatchCounts()
        self._check_bad_images(self.state.counts, self.state.samples_seen)

    def _check_graphs(self) -> None:
        """Warn once if the model is compiled again and again: each graph takes minutes, and there is a limit."""
        if self._model.is_compiled and not self._warned_of_graphs and compiled_graphs() > MOST_GRAPHS:
            self._warned_of_graphs = True
            _logger.warning(
                "%s: torch.compile has compiled %d graphs; blocks with more than %d run without compilation, which is "
                "slower. Set train.placement.compile=false, and report the architecture",
                *(self._trial.name, compiled_graphs(), MOST_GRAPHS),
            )

    def _log(self, loss: float, rate: float, wait_share: float, on_log: Callable[[dict[str, float]], None]) -> None:
        point = {
            "samples": float(self.state.samples_seen),
            "loss": loss,
            "learning_rate": float(self._optimizer.param_groups[0]["lr"]),
            "logit_scale": float(self._model.features.clip.logit_scale.detach().exp()),
            "gradient_norm": self._gradient_norm,
            "samples_per_second": rate,
            "data_wait_share": wait_share,
        }
        self.state.history.append(point)
        self._check_graphs()
        on_log(point)


def _serialised(state: Mapping[str, object]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _counts_of(batch: TrainBatch) -> BatchCounts:
    return BatchCounts(len(batch.bad_images), batch.bad_images[0] if batch.bad_images else "", batch.ledger)


def _check(features: FeatureModel, config: TrainConfig) -> None:
    if config.loss.kind == "siglip" and features.logit_bias is None:
        raise UsageError(
            "train.loss.kind=siglip: the model has no logit bias; set init_logit_bias in its open_clip_config.json, "
            "or start from weights with a logit bias"
        )
    if config.data.mode == "features" and not any(
        parameter.requires_grad for parameter in features.parameters() if parameter.ndim > 0
    ):
        raise UsageError(
            "train.model.lock: it locks all parameters but the logit scale, so there is nothing to train; leave the "
            "projection of a tower trainable, for example with {groups: 1}"
        )
    if config.data.mode == "features" and config.placement.strategy == "fsdp":
        raise UsageError(
            "train.placement.strategy=fsdp: with train.data.mode=features only small heads are trained; use ddp"
        )
    if config.placement.micro_batch_size is not None and has_batch_norm(features):
        raise UsageError(
            "train.placement.micro_batch_size: the model has batch normalisation, so its outputs depend on the "
            "micro-batch; unset micro_batch_size, or train a model without batch normalisation"
        )


def _adamw(features: FeatureModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW as CLIP is trained: no weight decay on gains, biases and the logit scale."""
    trained = [parameter for parameter in features.parameters() if parameter.requires_grad]
    # These are never sharded, and a fused step needs tensors of one kind: they are a group of their own.
    logit = [parameter for parameter in features.logit_parameters if parameter.requires_grad]
    others = [parameter for parameter in trained if not any(parameter is one for one in logit)]
    decay = config.optimizer.weight_decay
    groups = [
        {"params": [parameter for parameter in others if parameter.ndim >= 2], "weight_decay": decay},
        {"params": [parameter for parameter in others if parameter.ndim < 2], "weight_decay": 0.0},
        {"params": logit, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        eps=config.optimizer.epsilon,
        fused=True,
    )
