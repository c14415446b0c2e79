"""The training loop: open_clip's model and losses, AdamW, a schedule counted in samples. It knows nothing of Ray."""

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed

from mode_ray.config.train import TrainConfig
from mode_ray.errors import DataError, TrainingError, UsageError
from mode_ray.train.data import LoaderFactory, TrainBatch
from mode_ray.train.plan import Trial
from mode_ray.train.step.batch_counts import BatchCounts, all_gather_sum
from mode_ray.train.step.features import FeatureModel
from mode_ray.train.step.gradients import Gradients
from mode_ray.train.step.losses import ContrastiveLoss
from mode_ray.train.step.parallel import ParallelModel, has_batch_norm
from mode_ray.train.step.schedule import learning_rate, progress, warmup_share
from mode_ray.train.step.text_groups import causal_text

_MAX_LOGIT_SCALE = math.log(100)
_BAD_IMAGES_TOLERATED = 10
# Shapes that kernels of GPUs and compiled graphs like; elsewhere every token counts.
_LENGTH_MULTIPLE = 8


class NonFiniteError(TrainingError):
    """The loss of a batch, or the norm of its gradients, is not a finite number; it did not touch the weights.

    Attributes:
        samples_seen: Samples before that batch, which is its position.
    """

    def __init__(self, message: str, samples_seen: int) -> None:
        super().__init__(message, samples_seen)
        self.samples_seen = samples_seen

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class LoopState:
    """What a run has seen; stored with every checkpoint, so that it rolls back with the weights.

    With several ranks the counts of batches (`bad_images`, `first_bad_image`, `ledger`) are those of the last logged
    point or snapshot.

    Attributes:
        samples_seen: By the whole run, over all ranks; also the loader's cursor.
        history: Logged points: samples, loss, learning_rate, logit_scale, gradient_norm, samples_per_second,
            data_wait_share.
        bad_images: Undecodable images met.
        first_bad_image: Reason and place of the first one.
        ledger: Sum of the ledgers of all batches trained on, modulo 2^63.
        skipped: Positions of the batches that were left out.
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
        self.bad_images, self.first_bad_image, self.ledger = (
            counts.bad_images,
            counts.first_bad_image,
            counts.ledger,
        )


@dataclass(frozen=True)
class Snapshot:
    """A run between two steps, in main memory; training may continue while it is written.

    Attributes:
        weights: The model's, whole, by the bare model's names; empty on ranks above 0.
        state: Optimizer and loop state, for `load_state`; of use on rank 0 only.
    """

    weights: Mapping[str, torch.Tensor]
    state: bytes


class TrainLoop:
    """Trains one model for one trial.

    Args:
        module: The bare open_clip model; it is moved to the device, wrapped and compiled as `config.placement` says.
        trial: Samples and schedule.
        config: Batch, loss, optimizer, precision, placement.
        max_bad_image_share: Above this share of undecodable images the run ends.
        rank: Of this process.
        world_size: Number of processes; above 1 a process group must stand.
        device: Where to train; by default where the module is.

    Attributes:
        state: What the run has seen.
        device: Where it trains.

    Raises:
        UsageError: The model does not go with the loss or with micro-batches.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        trial: Trial,
        config: TrainConfig,
        max_bad_image_share: float,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.state = LoopState()
        # Counts of this rank that are not in the state yet.
        self._own = BatchCounts()
        self._left_out: set[int] = set()
        self._trial = trial
        self._config = config
        self._max_bad_image_share = max_bad_image_share
        self._rank = rank
        self._world_size = world_size
        self.device = device or next(module.parameters()).device
        placement = config.placement
        multiple = _LENGTH_MULTIPLE if placement.compile or self.device.type != "cpu" else 1
        module = module.to(self.device).train()
        features = FeatureModel(module, causal_text(module, placement.text_length_groups, multiple))
        _check(features, config)
        self._model = ParallelModel(features, placement, self.device, world_size)
        self._optimizer = _adamw(features, config)
        precision = torch.bfloat16 if config.model.precision == "bfloat16" else torch.float32
        loss = ContrastiveLoss(config.loss, rank, world_size)
        self._gradients = Gradients(self._model, loss, self.device, precision, placement.micro_batch_size)
        self._warmup = warmup_share(trial, config.optimizer.warmup_samples, config.dense_samples)
        self._gradient_norm = 0.0

    def run(
        self,
        loader: LoaderFactory,
        on_log: Callable[[dict[str, float]], None],
        after_step: Callable[[], None],
    ) -> None:
        """Train until the trial's samples are seen.

        Args:
            loader: Makes the loader that begins at a given sample.
            on_log: Called with every logged point.
            after_step: Called after every step; writes checkpoints when it is time.

        Raises:
            NonFiniteError: Loss or gradient of a batch is not finite; the run may go on after `leave_out`.
            DataError: Too many undecodable images.
        """
        steps, began, waited = 0, time.monotonic(), 0.0
        batches = iter(loader(self.state.samples_seen))
        while self.state.samples_seen < self._trial.samples:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            if self.state.samples_seen in self._left_out:
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
        """One optimizer step on one global batch (this rank's part of it, in main memory).

        Returns:
            The loss, averaged over the ranks.

        Raises:
            NonFiniteError: Loss or gradient is not finite, on every rank; nothing has changed.
            DataError: Too many undecodable images.
        """
        self._check_bad_images(batch)
        optimizer = self._config.optimizer
        # The rate of a step is that of the samples it completes, so that the first step already moves.
        at = progress(self._trial, self.state.samples_seen + self._config.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(optimizer.learning_rate, at, self._warmup)
        self._optimizer.zero_grad(set_to_none=True)
        first = self.state.samples_seen + self._rank * self._config.batch_size // self._world_size
        loss = self._gradients.compute(batch, seed=first)
        if self._world_size > 1:
            torch.distributed.all_reduce(loss)
            loss /= self._world_size
        # The step's one wait for the device.
        numbers: list[float] = torch.stack([loss, self._model.finish_gradients()]).tolist()
        value, norm = numbers
        self._check_finite(value, norm)
        if optimizer.gradient_norm_clip is not None and norm > optimizer.gradient_norm_clip:
            self._model.scale_gradients(optimizer.gradient_norm_clip / norm)
        self._optimizer.step()
        with torch.no_grad():
            self._model.features.clip.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        self._gradient_norm = norm
        self.state.samples_seen += self._config.batch_size
        self._count(batch)
        return value

    def leave_out(self, position: int) -> None:
        """Do not train on the batch that begins at a position of the run's sequence, when the run comes to it."""
        self._left_out.add(position)

    def gather_snapshot(self) -> Snapshot:
        """Weights, optimizer and loop state of the whole run. Collective: every rank calls it after the same step."""
        self._all_gather_counts()
        weights = self._model.weights()
        buffer = io.BytesIO()
        optimizer = self._model.optimizer_state(self._optimizer)
        torch.save({"optimizer": optimizer, "loop": vars(self.state)}, buffer)
        return Snapshot(weights, buffer.getvalue())

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over the weights of a snapshot, whatever the number of ranks that took it."""
        self._model.load_weights(weights)

    def load_state(self, data: bytes, *, continues: bool) -> None:
        """Take over optimizer state, and with `continues` (the same run, not its parent) the loop state as well."""
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self._model.load_optimizer_state(self._optimizer, stored["optimizer"])
        if continues:
            self.state = LoopState(**stored["loop"])
            self._own = BatchCounts()

    def _check_bad_images(self, batch: TrainBatch) -> None:
        """End the run where this rank alone has met too many. `_all_gather_counts` checks all ranks together."""
        if batch.bad_images:
            met = self.state.counts + self._own + _counts_of(batch)
            self._check_share(met, self.state.samples_seen + self._config.batch_size)

    def _check_share(self, met: BatchCounts, seen: int) -> None:
        if met.bad_images > max(_BAD_IMAGES_TOLERATED, self._max_bad_image_share * seen):
            raise DataError(
                f"{self._trial.name}: {met.bad_images} of {seen} images cannot be decoded, more than "
                f"limits.max_bad_image_share={self._max_bad_image_share} allows; first: {met.first_bad_image}"
            )

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradients is {norm}"
        raise NonFiniteError(
            f"{self._trial.name}: {what} after {self.state.samples_seen} samples; lower "
            "train.optimizer.learning_rate, or leave such batches out with train.placement.nonfinite=rollback",
            self.state.samples_seen,
        )

    def _count(self, batch: TrainBatch) -> None:
        """Count a batch on this rank. A single rank has nothing to gather: its state is always up to date."""
        self._own += _counts_of(batch)
        if self._world_size == 1:
            self._take_over_counts(self._own)

    def _all_gather_counts(self) -> None:
        """Add what every rank has counted to the state of the run. Collective: every rank calls it."""
        self._take_over_counts(all_gather_sum(self._own, self._world_size))

    def _take_over_counts(self, counts: BatchCounts) -> None:
        self._own = BatchCounts()
        self.state.counts += counts
        self._check_share(self.state.counts, self.state.samples_seen)

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
        on_log(point)


def _counts_of(batch: TrainBatch) -> BatchCounts:
    return BatchCounts(len(batch.bad_images), batch.bad_images[0] if batch.bad_images else "", batch.ledger)


def _check(features: FeatureModel, config: TrainConfig) -> None:
    if config.loss.kind == "siglip" and features.logit_bias is None:
        raise UsageError(
            "train.loss.kind=siglip: the model has no logit bias; set init_logit_bias in its open_clip_config.json, "
            "or start from weights that have one"
        )
    if config.placement.micro_batch_size is not None and has_batch_norm(features):
        raise UsageError(
            "train.placement.micro_batch_size: the model has batch normalisation, whose outputs depend on the "
            "micro-batch; unset it, or train a model without"
        )


def _adamw(features: FeatureModel, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW without decay on gains, biases and the logit scale, as CLIP is trained."""
    trained = [parameter for parameter in features.parameters() if parameter.requires_grad]
    # A group of their own: where the others are shards these are not, and one fused step takes tensors of one kind.
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
