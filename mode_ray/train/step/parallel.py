"""A model on one process, as copies on several (DDP), or as shards of one (FSDP2); and what spares memory or time.

Weights and optimizer state go in and out whole, under the names of the bare model: a checkpoint does not tell how many
processes wrote it, nor by which strategy.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from mode_ray.config.train import TrainPlacement
from mode_ray.train.step.features import FeatureModel
from mode_ray.train.step.text_groups import GroupedTexts

_BLOCK_LISTS = ("resblocks", "blocks", "layers", "layer")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ParallelModel:
    """A feature model, wrapped as a config asks for.

    Args:
        features: The model, on its device.
        placement: Strategy, gradient checkpointing, compilation.
        device: Of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, features: FeatureModel, placement: TrainPlacement, device: torch.device, world_size: int
    ) -> None:
        self.features = features
        self._world_size = world_size
        self._on_cpu = device.type == "cpu"
        self._sharded = world_size > 1 and placement.strategy == "fsdp"
        if placement.gradient_checkpointing:
            features.clip.set_grad_checkpointing()
        if placement.compile:
            _compile(features)
        self._module: Any = features
        if self._sharded:
            mesh = init_device_mesh(device.type, (world_size,))
            for block in transformer_blocks(features).values():
                fully_shard(block, mesh=mesh)
            # It refuses to shard single numbers.
            fully_shard(features, mesh=mesh, ignored_params=set(features.logit_parameters))
        elif world_size > 1:
            self._module = DistributedDataParallel(
                features, gradient_as_bucket_view=True, broadcast_buffers=has_batch_norm(features)
            )

    def __call__(self, images: torch.Tensor, texts: torch.Tensor | GroupedTexts) -> dict[str, torch.Tensor]:
        """Features as `FeatureModel.forward` gives them; their gradients are averaged over the processes."""
        features: dict[str, torch.Tensor] = self._module(images, texts)
        return features

    def accumulating(self) -> AbstractContextManager[None]:
        """A block whose gradients are only added up, since more follow.

        Shards are reduced nevertheless: whole gradients would take the memory that sharding spares.
        """
        context: AbstractContextManager[None] = nullcontext()
        if isinstance(self._module, DistributedDataParallel):
            context = self._module.no_sync()
        return context

    def finish_gradients(self) -> torch.Tensor:
        """Average what the strategy itself leaves out; returns the norm of all gradients, the same on every rank."""
        if self._sharded:
            for parameter in self.features.logit_parameters:
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self._world_size
        gradients = self._gradients()
        shards = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        norms = [get_total_norm(whole)]
        if shards:
            total: Any = get_total_norm(shards)
            norms.append(total.full_tensor())
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients by a number."""
        for gradient in self._gradients():
            gradient.mul_(factor)

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of all weights in main memory, by the bare model's names; empty on ranks above 0. Collective."""
        weights: dict[str, Any] = get_model_state_dict(self.features.clip, options=_WHOLE)
        # The library copies from other devices only, and training goes on while these are written.
        return {name: tensor.clone() for name, tensor in weights.items()} if self._on_cpu else weights

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over whole weights; every rank is given all of them."""
        set_model_state_dict(self.features.clip, dict(weights), options=StateDictOptions(full_state_dict=True))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """State of an optimizer in main memory, by the names of the parameters; empty on ranks above 0. Collective."""
        # Without a step behind it the library would make one up, and count it.
        return get_optimizer_state_dict(self.features.clip, optimizer, options=_WHOLE) if optimizer.state else {}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take over whole optimizer state; every rank is given all of it."""
        optimizer.state.clear()
        # With gradients at hand (of a batch that came to nothing) the library would not make the state it fills.
        optimizer.zero_grad(set_to_none=True)
        if state:
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.features.clip, optimizer, state, options=options)

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.features.parameters() if parameter.grad is not None]


def transformer_blocks(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The outermost repeated blocks of a model's towers, by name."""
    blocks: dict[str, torch.nn.Module] = {}
    for name, child in module.named_modules():
        is_list = isinstance(child, torch.nn.ModuleList | torch.nn.Sequential)
        if is_list and name.split(".")[-1] in _BLOCK_LISTS and not any(name.startswith(f"{b}.") for b in blocks):
            blocks |= {f"{name}.{number}": block for number, block in child.named_children()}
    return blocks


def has_batch_norm(module: torch.nn.Module) -> bool:
    """Whether outputs depend on which other samples go through the model with one."""
    return any(isinstance(child, _BatchNorm) for child in module.modules())


def _compile(features: FeatureModel) -> None:
    """Compile block by block: the blocks of a tower share a graph, whatever the model is wrapped in."""
    blocks = transformer_blocks(features)
    for name, block in blocks.items():
        # Groups of captions have lengths of their own: shapes are left open from the start.
        block.compile(dynamic=None if name.startswith("clip.visual.") else True)
    if not any(name.startswith("clip.visual.") for name in blocks):
        features.clip.visual.compile()
