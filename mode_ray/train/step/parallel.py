"""A model on one process, replicated (DDP) or sharded (FSDP2); with gradient checkpointing and compilation.

Weights and optimizer state are loaded and gathered as whole tensors, under the names of the bare model. A checkpoint
therefore does not depend on the number of processes or on the strategy.
"""

import logging
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from mode_ray.config.train import TrainPlacement
from mode_ray.train.step.features import FeatureModel
from mode_ray.train.step.text_groups import GroupedTexts

_BLOCK_LISTS = ("resblocks", "blocks", "layers", "layer")
MOST_GRAPHS = 16
"""Most graphs of one block that are compiled."""
_C_COMPILERS = ("cc", "gcc", "clang")
_logger = logging.getLogger(__name__)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ParallelModel:
    """A feature model, wrapped as the config says.

    Attributes:
        features: The model without wrappers.
        is_compiled: Whether its blocks are compiled.
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
        self.is_compiled = is_compiled(placement, device)
        if self.is_compiled:
            _compile(features)
        in_bfloat16 = placement.gradient_reduction == "bfloat16"
        self._module: Any = features
        if self._sharded:
            mesh = init_device_mesh(device.type, (world_size,))
            policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if in_bfloat16 else None)
            for block in transformer_blocks(features).values():
                fully_shard(block, mesh=mesh, mp_policy=policy)
            # FSDP2 refuses to shard scalars.
            fully_shard(features, mesh=mesh, mp_policy=policy, ignored_params=set(features.logit_parameters))
        elif world_size > 1:
            self._module = DistributedDataParallel(
                features, gradient_as_bucket_view=True, broadcast_buffers=has_batch_norm(features)
            )
            if in_bfloat16:
                self._module.register_comm_hook(None, bf16_compress_hook)
        # Collected once: with locked towers, few of hundreds of parameters are trained.
        self._trained = [parameter for parameter in features.parameters() if parameter.requires_grad]

    def __call__(self, images: torch.Tensor, texts: torch.Tensor | GroupedTexts) -> dict[str, torch.Tensor]:
        """Features as of `FeatureModel.forward`. Their gradients are averaged over the processes."""
        features: dict[str, torch.Tensor] = self._module(images, texts)
        return features

    def accumulating(self) -> AbstractContextManager[None]:
        """A context in which DDP accumulates gradients without reducing them.

        FSDP2 reduces them in every pass: whole gradients would take the memory that sharding saves.
        """
        context: AbstractContextManager[None] = nullcontext()
        if isinstance(self._module, DistributedDataParallel):
            context = self._module.no_sync()
        return context

    def finish_gradients_on_all_ranks(self) -> torch.Tensor:
        """Average the gradients that the strategy does not, and return the norm of all of them. Collective."""
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

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """Copies of all weights in main memory, by the bare model's names; empty on ranks above 0. Collective."""
        weights: dict[str, Any] = get_model_state_dict(self.features.clip, options=_WHOLE)
        # Training continues while these are written. torch copies only tensors of other devices.
        return {name: tensor.clone() for name, tensor in weights.items()} if self._on_cpu else weights

    def load_weights_on_all_ranks(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load whole weights. Collective: every rank passes all of them."""
        set_model_state_dict(self.features.clip, dict(weights), options=StateDictOptions(full_state_dict=True))

    def gather_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Copies of an optimizer's state in main memory, by parameter name; empty on ranks above 0. Collective."""
        # Before the first step torch would create the state with a step of its own, and count it.
        if not optimizer.state:
            return {}
        state = get_optimizer_state_dict(self.features.clip, optimizer, options=_WHOLE)
        return deepcopy(state) if self._on_cpu else state

    def load_optimizer_state_on_all_ranks(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load a whole optimizer state. Collective: every rank passes all of it."""
        optimizer.state.clear()
        # torch initialises the state that it fills only if there are no gradients, such as those of a skipped batch.
        optimizer.zero_grad(set_to_none=True)
        if state:
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.features.clip, optimizer, state, options=options)

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self._trained if parameter.grad is not None]


def transformer_blocks(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The outermost repeated blocks of a model's towers, by name."""
    blocks: dict[str, torch.nn.Module] = {}
    for name, child in module.named_modules():
        is_list = isinstance(child, torch.nn.ModuleList | torch.nn.Sequential)
        if is_list and name.split(".")[-1] in _BLOCK_LISTS and not any(name.startswith(f"{b}.") for b in blocks):
            blocks |= {f"{name}.{number}": block for number, block in child.named_children()}
    return blocks


def has_batch_norm(module: torch.nn.Module) -> bool:
    """Whether a model has batch normalisation in training mode: outputs depend on the other samples of the batch."""
    return any(isinstance(child, _BatchNorm) and child.training for child in module.modules())


def is_compiled(placement: TrainPlacement, device: torch.device) -> bool:
    """Whether a model is compiled: as the config says, or by default on GPUs."""
    if placement.compile != "auto":
        return placement.compile
    if device.type != "cuda":
        return False
    if not any(shutil.which(compiler) for compiler in _C_COMPILERS):
        _logger.warning(
            "train.placement.compile=auto: the model is not compiled, because this machine has no C compiler, which "
            "Triton needs; install gcc, or set train.placement.compile=false"
        )
        return False
    return True


def compiled_graphs() -> int:
    """Number of graphs that this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _compile(features: FeatureModel) -> None:
    """Compile block by block: the blocks of a tower share a graph, with any wrapper around the model."""
    # Above this limit PyTorch runs a block without compiling it. Its default is 8.
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    blocks = transformer_blocks(features)
    for name, block in blocks.items():
        # Groups of captions have different lengths, so shapes of text blocks are dynamic from the start.
        block.compile(dynamic=None if name.startswith("clip.visual.") else True)
    if not any(name.startswith("clip.visual.") for name in blocks):
        features.clip.visual.compile()
