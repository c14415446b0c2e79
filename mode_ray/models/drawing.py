"""Builds a module without drawing its initial weights, for modules whose weights are all loaded afterwards."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_})


class WithoutDrawing(TorchFunctionMode):
    """A context in which `torch.nn.init` and random numbers leave tensors as they are in memory.

    Drawing takes about half of the time to build a model.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's interface
        """Return the tensor as it is, or call the function."""
        named = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else named["tensor"]
        return func(*args, **named)
