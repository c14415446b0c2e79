"""Loss and gradients of a global batch, in one pass or in micro-batches.

A contrastive loss needs the features of the whole batch, but not their activations. GradCache (Gao et al. 2021, arXiv
2101.06983) first computes all features without a graph. The loss gives their gradients, and a second pass
backpropagates them one micro-batch at a time. The gradients are the same, with the memory of one micro-batch.
"""

from contextlib import nullcontext

import torch

from mode_ray.models.pixels import PixelNormaliser
from mode_ray.train.step.batch import TextPreparation, Texts, TrainBatch
from mode_ray.train.step.features import IMAGE, LOGIT_BIAS, LOGIT_SCALE, TEXT
from mode_ray.train.step.losses import ContrastiveLoss
from mode_ray.train.step.parallel import ParallelModel

_PAIRED = (IMAGE, TEXT)
_LOGIT = (LOGIT_SCALE, LOGIT_BIAS)
_SEED_BITS = 32


class Gradients:
    """Computes loss and gradients.

    Args:
        model: The wrapped model.
        loss: The loss of the global batch.
        normalise: Normalises pixels; has device and precision of the step.
        prepare: Groups captions, and has the size of a micro-batch.
    """

    def __init__(
        self, model: ParallelModel, loss: ContrastiveLoss, normalise: PixelNormaliser, prepare: TextPreparation
    ) -> None:
        self._model = model
        self._loss = loss
        self._normalise = normalise
        self._prepare = prepare
        self._seeded = model.features.draws_random_numbers

    def compute(self, batch: TrainBatch, seed: int) -> torch.Tensor:
        """Add the gradients of this rank's part of a batch, averaged over the ranks.

        Args:
            batch: The batch, in main memory or on the device.
            seed: Seed of the model's random draws, such as dropped patches.

        Returns:
            The loss of this rank's part, on the device.
        """
        size = self._prepare.micro_batch_size or len(batch.images)
        images = torch.split(batch.images, size)
        texts = batch.texts if isinstance(batch.texts, tuple) else self._prepare(batch.texts)
        ids = batch.caption_ids.to(self._normalise.device, non_blocking=True)
        if len(images) == 1:
            loss = self._loss(self._features(images[0], texts[0], seed), ids)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        with torch.no_grad():
            parts = [
                self._features(*pairs, seed + number * size)
                for number, pairs in enumerate(zip(images, texts, strict=True))
            ]
        cached = {name: torch.cat([part[name] for part in parts]).requires_grad_() for name in _PAIRED}
        cached |= {name: parts[0][name].detach().clone().requires_grad_() for name in _LOGIT if name in parts[0]}
        loss = self._loss(cached, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: torch.split(_gradient(cached[name]), size) for name in _PAIRED}
        for number, pairs in enumerate(zip(images, texts, strict=True)):
            last = number == len(images) - 1
            with nullcontext() if last else self._model.accumulating():
                part = self._features(*pairs, seed + number * size)
                names = [name for name in part if part[name].requires_grad]
                # Every micro-batch uses logit scale and bias, and contributes an equal share of their gradients.
                torch.autograd.backward(
                    [part[name] for name in names],
                    [
                        gradients[name][number] if name in gradients else _gradient(cached[name]) / len(images)
                        for name in names
                    ],
                )
        return loss.detach()

    def _features(self, images: torch.Tensor, texts: Texts, seed: int) -> dict[str, torch.Tensor]:
        if self._seeded:
            # Both passes must draw the same numbers. This seeds the CPU's generator too, which open_clip uses.
            torch.manual_seed(seed % 2**_SEED_BITS)
        device, precision = self._normalise.device, self._normalise.precision
        inputs = self._normalise(images.to(device, non_blocking=True)), texts.to(device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            # Without a graph, use the bare model: DDP's reducer would wait for gradients.
            return self._model(*inputs) if torch.is_grad_enabled() else self._model.features(*inputs)


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
