"""The training loop: open_clip's model and loss, AdamW, a schedule counted in samples. It knows nothing of Ray."""

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import open_clip
import torch

from mode_ray.errors import DataError, TrainingError
from mode_ray.train.budget import Trial
from mode_ray.train.data import LoaderFactory, TrainBatch
from mode_ray.train.schedule import learning_rate, progress
from mode_ray.train_config import TrainConfig

_MAX_LOGIT_SCALE = math.log(100)
_BAD_IMAGES_TOLERATED = 10


@dataclass
class LoopState:
    """What goes on growing during a run; stored with every checkpoint, so that it rolls back with the weights.

    Attributes:
        samples_seen: By the whole run, over all ranks; also the loader's cursor.
        history: Logged points: samples, loss, learning_rate, logit_scale, samples_per_second, data_wait_share.
        bad_images: Undecodable images met by this rank.
        first_bad_image: Reason and place of the first one.
        ledger: Sum of the ledgers of this rank's batches, modulo 2^63; those left out do not count.
        skipped: Positions of the batches that were left out.
    """

    samples_seen: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    bad_images: int = 0
    first_bad_image: str = ""
    ledger: int = 0
    skipped: list[int] = field(default_factory=list)


class NonFiniteError(TrainingError):
    """The loss of a batch is not a finite number; the weights were not updated by it.

    Attributes:
        samples_seen: Samples before that batch, which is its position.
    """

    def __init__(self, message: str, samples_seen: int) -> None:
        super().__init__(message)
        self.samples_seen = samples_seen


@dataclass(frozen=True)
class Snapshot:
    """A run between two steps, in the memory of the host.

    Attributes:
        weights: The model's, by name.
        state: Optimizer and loop state, for `load_state`.
    """

    weights: dict[str, torch.Tensor]
    state: bytes


class TrainLoop:
    """Trains one model for one trial.

    Args:
        module: The open_clip model.
        trial: Samples and schedule.
        config: Batch, optimizer, precision.
        max_bad_image_share: Above this share of undecodable images the run ends.
        rank: Of this process.
        world_size: Number of processes.
        device: Where to train; where the module is by default.
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
        module = module if device is None else module.to(device)
        self._bare: Any = module
        self._module = torch.nn.parallel.DistributedDataParallel(module) if world_size > 1 else module
        self._left_out: set[int] = set()
        self._trial = trial
        self._config = config
        self._max_bad_image_share = max_bad_image_share
        self._world_size = world_size
        self._device = next(module.parameters()).device
        self._loss = open_clip.ClipLoss(
            local_loss=True, gather_with_grad=True, cache_labels=True, rank=rank, world_size=world_size
        )
        self._optimizer = _adamw(self._bare, config)
        self._precision = torch.bfloat16 if config.model.precision == "bfloat16" else torch.float32

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
            NonFiniteError: The loss of a batch is not finite.
            DataError: Too many undecodable images.
        """
        steps, began, waited = 0, time.monotonic(), 0.0
        batches = iter(loader(self.state.samples_seen))
        while self.state.samples_seen < self._trial.samples:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            loss = self.step(batch)
            steps += 1
            last = self.state.samples_seen >= self._trial.samples
            if steps % self._config.placement.log_interval_steps == 0 or last:
                seconds = time.monotonic() - began
                self._log(loss, steps * self._config.batch_size / seconds, waited / seconds, on_log)
                steps, began, waited = 0, time.monotonic(), 0.0
            after_step()

    def step(self, batch: TrainBatch) -> torch.Tensor:
        """One optimizer step on one global batch (this rank's part of it).

        Returns:
            The loss, still on the device.
        """
        if self.state.samples_seen in self._left_out:
            self.state.skipped.append(self.state.samples_seen)
            self.state.samples_seen += self._config.batch_size
            return torch.zeros(())
        self._count_bad_images(batch)
        batch = batch.to(self._device)
        optimizer = self._config.optimizer
        # The rate of a step is that of the samples it completes, so that the first step already moves.
        at = progress(self._trial, self.state.samples_seen + self._config.batch_size)
        warmup = min(1.0, optimizer.warmup_samples / self._config.dense_samples)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(optimizer.learning_rate, at, warmup)
        with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
            output = self._module(batch.images, batch.texts)
            loss: torch.Tensor = self._loss(**output)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"{self._trial.name}: the loss is {float(loss)} after {self.state.samples_seen} samples; "
                "lower train.optimizer.learning_rate or set train.optimizer.gradient_norm_clip",
                self.state.samples_seen,
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if optimizer.gradient_norm_clip is not None:
            torch.nn.utils.clip_grad_norm_(self._bare.parameters(), optimizer.gradient_norm_clip)
        self._optimizer.step()
        with torch.no_grad():
            self._bare.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        self.state.samples_seen += self._config.batch_size
        self.state.ledger = (self.state.ledger + batch.ledger) % 2**63
        return loss.detach()

    def leave_out(self, position: int) -> None:
        """Do not train on the batch at this position."""
        self._left_out.add(position)

    def snapshot(self) -> Snapshot:
        """A copy of weights, optimizer and loop state; every rank must call it."""
        buffer = io.BytesIO()
        torch.save({"optimizer": self._optimizer.state_dict(), "loop": vars(self.state)}, buffer)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self._bare.state_dict().items()}
        return Snapshot(weights, buffer.getvalue())

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over the weights of a snapshot."""
        self._bare.load_state_dict(weights)

    def load_state(self, data: bytes, *, continues: bool) -> None:
        """Take over optimizer state, and with `continues` (the same run, not its parent) the loop state as well."""
        stored = torch.load(io.BytesIO(data), map_location=self._device, weights_only=True)
        self._optimizer.load_state_dict(stored["optimizer"])
        if continues:
            self.state = LoopState(**stored["loop"])

    def _count_bad_images(self, batch: TrainBatch) -> None:
        if not batch.bad_images:
            return
        self.state.first_bad_image = self.state.first_bad_image or batch.bad_images[0]
        self.state.bad_images += len(batch.bad_images)
        seen = (self.state.samples_seen + self._config.batch_size) / self._world_size
        allowed = max(_BAD_IMAGES_TOLERATED, self._max_bad_image_share * seen)
        if self.state.bad_images > allowed:
            raise DataError(
                f"{self._trial.name}: {self.state.bad_images} of {round(seen)} images cannot be decoded, more than "
                f"limits.max_bad_image_share={self._max_bad_image_share} allows; first: {self.state.first_bad_image}"
            )

    def _log(
        self, loss: torch.Tensor, rate: float, wait_share: float, on_log: Callable[[dict[str, float]], None]
    ) -> None:
        value = float(loss)
        point = {
            "samples": float(self.state.samples_seen),
            "loss": value,
            "learning_rate": float(self._optimizer.param_groups[0]["lr"]),
            "logit_scale": float(self._bare.logit_scale.detach().exp()),
            "samples_per_second": rate,
            "data_wait_share": wait_share,
        }
        self.state.history.append(point)
        on_log(point)


def _adamw(module: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW without decay on gains, biases and the logit scale, as CLIP is trained."""
    decayed = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim >= 2]
    others = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.optimizer.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        eps=config.optimizer.epsilon,
        fused=True,
    )
