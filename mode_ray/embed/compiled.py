"""A transformer compiled for CPUs by OpenVINO, with products in float32, bfloat16 or int8.

In int8, the weights of every linear layer have a scale for each output, and OpenVINO quantizes groups of activations
as it computes them. Nothing is calibrated, so no captions decide the embedding space. Activations are quantized only
on processors with the VNNI instructions; on others OpenVINO computes in float32 with the rounded weights.
"""

import contextlib
import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.errors import UsageError

_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
# Smaller groups are slower and closer to float32; measured with MiniLM (benchmarks/embed.py).
_ACTIVATIONS_PER_GROUP = 128
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
        if dtype not in _HINTS:
            raise UsageError(f"encoder.dtype: OpenVINO computes in {', '.join(_HINTS)}, not in {dtype}")
        openvino = import_openvino()
        self._names = tuple(probes[0])
        traced = _Positional(model, self._names)
        with _quiet():
            graph = openvino.convert_model(traced, example_input=tuple(probes[0][name] for name in self._names))
        graph.reshape({value: openvino.PartialShape([-1, -1]) for value in graph.inputs})
        if dtype == "int8":
            _round_weights(openvino, graph)
        compiled = _core().compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[dtype],
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_ACTIVATIONS_PER_GROUP if dtype == "int8" else 0),
                "NUM_STREAMS": str(threads),
                "INFERENCE_NUM_THREADS": threads,
                # All processes of a machine would pin their threads to the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(threads):
            self._requests.put(compiled.create_infer_request())
        self._require_equal(traced, probes)

    def __call__(self, **inputs: torch.Tensor) -> TransformerOutput:
        """Compute the outputs of a padded batch, float32; from at most `threads` threads at the same time."""
        request = self._requests.get()
        try:
            results = request.infer([inputs[name].numpy() for name in self._names])
        finally:
            self._requests.put(request)
        hidden_btd, *pooled_bd = (torch.from_numpy(array) for array in results.values())
        return TransformerOutput(hidden_btd, pooled_bd[0] if pooled_bd else None)

    def _require_equal(self, traced: "_Positional", probes: Sequence[Mapping[str, torch.Tensor]]) -> None:
        cosines = []
        for probe in probes:
            with torch.inference_mode():
                right_btd = traced(*(probe[name] for name in self._names))[0]
            mask_bt = probe["attention_mask"].bool()
            cosine_bt = torch.cosine_similarity(self(**probe).last_hidden_state, right_btd, dim=-1)
            cosines.append(float(cosine_bt[mask_bt].mean()))
        if min(cosines) < _LOWEST_COSINE:
            raise UsageError(
                f"embed.encoder.runtime: OpenVINO does not compute this model correctly (cosine {min(cosines):.3f} to "
                "torch): set embed.encoder.runtime=torch, and an encoder.dtype other than int8"
            )


class _Positional(torch.nn.Module):
    """The model with positional inputs and a tuple of outputs, as tracing needs it."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self._model = model
        self._names = tuple(names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self._model(**dict(zip(self._names, inputs, strict=True)))
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state,) if pooled is None else (output.last_hidden_state, pooled)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that a traced model may be wrong for other shapes: `_require_equal` finds out."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def import_openvino() -> ModuleType:
    """The openvino module, without its telemetry.

    Raises:
        UsageError: It is not installed.
    """
    # It would report each conversion to its makers.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise UsageError("OpenVINO is not installed: run `pip install 'mode_ray[openvino]'`") from None


@functools.cache
def _core() -> Any:  # noqa: ANN401  (openvino.Core)
    """OpenVINO's core, one for all models of this process. It is never freed.

    A core gives the thread that loads its CPU plugin another stack for signal handlers. If two cores are freed in the
    order in which they were made, the thread keeps a freed stack, and its next signal ends the process.
    """
    return import_openvino().Core()


def _round_weights(openvino: ModuleType, graph: Any) -> None:  # noqa: ANN401
    """Replace the weights of linear layers by int8 numbers times a scale for each output."""
    operations = openvino.opset13
    for product in graph.get_ops():
        if product.get_type_name() != "MatMul" or not product.get_attributes()["transpose_b"]:
            continue
        weights = product.input_value(1).get_node()
        if weights.get_type_name() != "Constant" or len(weights.shape) != 2:
            continue
        rounded_oi, scale_o1 = rounded_weights(weights.data)
        whole = operations.convert(operations.constant(rounded_oi), "f32")
        scaled = operations.multiply(whole, operations.constant(scale_o1))
        product.input(1).replace_source_output(scaled.output(0))


def rounded_weights(weights_oi: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Weights as int8 [o, i] times float32 [o, 1], so that the largest of each output is 127 or -127."""
    largest_o1 = np.abs(weights_oi).max(axis=1, keepdims=True)
    scale_o1 = (np.where(largest_o1 > 0, largest_o1, 1.0) / 127.0).astype(np.float32)
    return np.rint(weights_oi / scale_o1).astype(np.int8), scale_o1
