"""A transformer of the transformers library, compiled for CPUs by OpenVINO."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from mode_ray.errors import UsageError
from mode_ray.util.openvino_module import PRODUCTS, OpenVinoModule

# Mean cosine of the hidden states to those of torch; below it, the model was not translated correctly.
_LOWEST_COSINE = 0.95


class TransformerOutput(NamedTuple):
    """The outputs that poolings read; see transformers."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor | None


class CompiledTransformer:
    """A model of transformers, compiled.

    Args:
        model: The model, float32.
        dtype: `float32`, `bfloat16` or `int8`: the arithmetic of its matrix products.
        probes: Inputs of at least two shapes, on which it is compared with the model.
        threads: Calls at the same time; each takes one CPU thread.

    Raises:
        UsageError: OpenVINO is not installed, or it computes something else than the model.
    """

    def __init__(
        self, model: torch.nn.Module, dtype: str, probes: Sequence[Mapping[str, torch.Tensor]], threads: int
    ) -> None:
        if dtype not in PRODUCTS:
            raise UsageError(f"encoder.dtype: OpenVINO computes in {', '.join(PRODUCTS)}, not in {dtype}")
        self._names = tuple(probes[0])
        by_position = _ByPosition(model, self._names)
        example = [probes[0][name] for name in self._names]
        shapes = [(-1, -1)] * len(self._names)
        self._compiled = OpenVinoModule(by_position, dtype, example, shapes, calls=threads, threads=threads)
        self._require_equal(by_position, probes)

    def __call__(self, **inputs: torch.Tensor) -> TransformerOutput:
        """Compute the outputs of a padded batch, float32."""
        hidden_btd, *pooled_bd = self._compiled(*(inputs[name] for name in self._names))
        return TransformerOutput(hidden_btd, pooled_bd[0] if pooled_bd else None)

    def _require_equal(self, by_position: "_ByPosition", probes: Sequence[Mapping[str, torch.Tensor]]) -> None:
        cosines = []
        for probe in probes:
            with torch.inference_mode():
                right_btd = by_position(*(probe[name] for name in self._names))[0]
            mask_bt = probe["attention_mask"].bool()
            cosine_bt = torch.cosine_similarity(self(**probe).last_hidden_state, right_btd, dim=-1)
            cosines.append(float(cosine_bt[mask_bt].mean()))
        if min(cosines) < _LOWEST_COSINE:
            raise UsageError(
                f"embed.encoder.runtime: OpenVINO does not compute this model correctly (cosine {min(cosines):.3f} to "
                "torch): set embed.encoder.runtime=torch, and an encoder.dtype other than int8"
            )


class _ByPosition(torch.nn.Module):
    """The model with positional inputs and a tuple of outputs, as tracing needs it."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self._model = model
        self._names = tuple(names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self._model(**dict(zip(self._names, inputs, strict=True)))
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state,) if pooled is None else (output.last_hidden_state, pooled)
