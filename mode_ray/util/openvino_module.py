"""PyTorch modules compiled for CPUs by OpenVINO, with products in float32, bfloat16 or int8.

In int8, the weights of every linear layer have a scale for each output, and OpenVINO quantizes groups of activations
as it computes them. Nothing is calibrated, so no data decide what is computed. Activations are quantized only on
processors with the VNNI instructions; on others OpenVINO computes in float32 with the rounded weights.
"""

import contextlib
import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.errors import UsageError

# Types of products, and OpenVINO's names of the types of everything else.
PRODUCTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
# Smaller groups are slower and closer to float32; measured with MiniLM (benchmarks/embed.py).
_ACTIVATIONS_PER_GROUP = 128


class OpenVinoModule:
    """A compiled module.

    Args:
        module: Takes tensors by position and returns one tensor or a tuple; float32, on the CPU.
        dtype: The arithmetic of matrix products, one of `PRODUCTS`. Inputs and outputs are float32.
        example: Inputs with which the module is traced.
        shapes: The shape of every input, with -1 for sizes that vary between calls.
        calls: Calls at the same time; further ones wait.
        threads: CPU threads of all calls together.

    Raises:
        UsageError: OpenVINO is not installed.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        dtype: str,
        example: Sequence[torch.Tensor],
        shapes: Sequence[Sequence[int]],
        calls: int,
        threads: int,
    ) -> None:
        openvino = import_openvino()
        with _traceable():
            graph = openvino.convert_model(_traced(module, tuple(example)))
        sizes = [openvino.PartialShape(list(shape)) for shape in shapes]
        graph.reshape(dict(zip(graph.inputs, sizes, strict=True)))
        if dtype == "int8":
            _round_weights(openvino, graph)
        compiled = _core().compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": PRODUCTS[dtype],
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_ACTIVATIONS_PER_GROUP if dtype == "int8" else 0),
                "NUM_STREAMS": str(calls),
                "INFERENCE_NUM_THREADS": threads,
                # All processes of a machine would pin their threads to the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(calls):
            self._requests.put(compiled.create_infer_request())

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, float32."""
        request = self._requests.get()
        try:
            results = request.infer([tensor.numpy() for tensor in inputs])
        finally:
            self._requests.put(request)
        return tuple(torch.from_numpy(array) for array in results.values())


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
    """OpenVINO's core, one for all modules of this process. It is never freed.

    A core gives the thread that loads its CPU plugin another stack for signal handlers. If two cores are freed in the
    order in which they were made, the thread keeps a freed stack, and its next signal ends the process.
    """
    return import_openvino().Core()


def _traced(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> Any:  # noqa: ANN401
    """The module as OpenVINO reads it. torch does not trace it a second time to compare: callers compare outputs."""
    decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    return decoder.TorchScriptPythonDecoder(module, example_input=example, trace_kwargs={"check_trace": False})


@contextlib.contextmanager
def _traceable() -> Iterator[None]:
    """Without torch's fused attention layer, which is not traced the same way twice.

    Warnings that a traced module may be wrong for other shapes are off: callers compare outputs.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    fused = torch.backends.mha.get_fastpath_enabled()
    logger.setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        logger.setLevel(level)


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
