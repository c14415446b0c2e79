"""Image embeddings of a task's split by all models, in one pass: every image is decoded and prepared once."""

from collections.abc import Mapping

import numpy as np
import torch

from mode_ray.config import EvaluatePlacement
from mode_ray.evaluate.samples import Split, read_samples
from mode_ray.evaluate.tasks import Task
from mode_ray.evaluate.usable_samples import UsableSamples
from mode_ray.expert import Expert


def encode_split(
    task: Task, split: Split, experts: Mapping[str, Expert], placement: EvaluatePlacement, max_pixels: int
) -> tuple[UsableSamples, dict[str, np.ndarray]]:
    """Embed a split's usable images.

    Args:
        task: The task.
        split: Which.
        experts: Models by name; they share the preparation of images.
        placement: Batch size.
        max_pixels: Larger images are left out.

    Returns:
        The samples, and by model their unit rows, float32 [i, d].

    Raises:
        DataError: A file cannot be read, or no sample is usable.
    """
    prepare = next(iter(experts.values())).prepare
    usable = UsableSamples(task, max_pixels)
    features: dict[str, list[np.ndarray]] = {name: [] for name in experts}
    batch: list[torch.Tensor] = []
    for sample in read_samples(task, split):
        image = usable.take(sample)
        if image is not None:
            batch.append(prepare(image))
        if len(batch) == placement.batch_size:
            _encode(experts, batch, features)
            batch = []
    _encode(experts, batch, features)
    usable.require_some()
    return usable, {name: np.concatenate(parts) for name, parts in features.items()}


def _encode(experts: Mapping[str, Expert], batch: list[torch.Tensor], features: dict[str, list[np.ndarray]]) -> None:
    if batch:
        images_b3hw = torch.stack(batch)
        for name, expert in experts.items():
            features[name].append(expert.encode_images(images_b3hw))
