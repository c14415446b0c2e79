"""Image trunks compiled for CPUs by OpenVINO: the features of torch, in less time."""

from collections.abc import Collection
from dataclasses import replace
from typing import cast

import torch

from mode_ray.errors import UsageError
from mode_ray.models.encode import Expert
from mode_ray.models.together import by_image_trunk
from mode_ray.util.openvino_module import OpenVinoModule

# Of features to those of torch; below it, the trunk was not translated correctly.
_LOWEST_COSINE = 0.99
_PROBE_BATCHES = (1, 3)


def compile_image_trunks(experts: Collection[Expert]) -> None:
    """Replace the image trunks of models on CPUs, each for the model's `threads`; equal trunks are compiled once.

    Trunks on GPUs and the text towers stay with torch.

    Raises:
        UsageError: OpenVINO is not installed, or it computes something else than a trunk.
    """
    for group in by_image_trunk(dict(enumerate(experts))):
        first = group[min(group)]
        if first.device.type == "cpu":
            compiled = _CompiledTrunk(first)
            for expert in group.values():
                expert.image_tower = replace(expert.image_tower, features=compiled)


class _CompiledTrunk:
    """Prepared images, float32 [b, 3, h, w], to the features of an expert's image trunk, float32 [b, k]."""

    def __init__(self, expert: Expert) -> None:
        shape = (3, *expert.image_size)
        generator = torch.Generator().manual_seed(0)
        probes = [torch.randn(b, *shape, generator=generator) for b in _PROBE_BATCHES]
        rights = [expert.image_features(probe_b3hw).float() for probe_b3hw in probes]
        threads = expert.threads or torch.get_num_threads()
        module = cast("torch.nn.Module", expert.image_tower.features)
        self._compiled = OpenVinoModule(module, expert.precision, probes[:1], [(-1, *shape)], calls=1, threads=threads)
        cosine = min(
            float(torch.cosine_similarity(self(probe_b3hw), right_bk).min())
            for probe_b3hw, right_bk in zip(probes, rights, strict=True)
        )
        if cosine < _LOWEST_COSINE:
            raise UsageError(
                f"serve.runtime: OpenVINO does not compute the image tower of {expert.folder} correctly (cosine "
                f"{cosine:.3f} to torch): set serve.runtime=torch"
            )

    def __call__(self, images_b3hw: torch.Tensor) -> torch.Tensor:
        return self._compiled(images_b3hw)[0]
