"""sentence-transformers with one of its backends, in a process of its own: for `embed.py`.

Each has the best of four batch sizes. It reads lines from its input and answers each with the seconds of one encoding;
the first line of its output is its batch size, and its embeddings lie in a file then. It imports nothing of ours,
because the environment of these backends has other versions of transformers.

The int8 models are made as sentence-transformers' own functions make them, but with the captions in place of a
data set of the Hugging Face hub where calibration is needed.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BACKENDS = ("torch-float32", "torch-bfloat16", "onnx-float32", "onnx-int8", "openvino-float32", "openvino-int8")
BATCH_SIZES = (16, 32, 64, 128)
MAX_TOKENS = 256
CAPTIONS_TO_CHOOSE_BY = 512
CALIBRATION_CAPTIONS = 300


def load(backend: str, model: str, folder: Path, captions: list[str]) -> Any:  # noqa: ANN401 - of a library that ours lacks
    """The model on a backend.

    Args:
        backend: One of `BACKENDS`.
        model: Folder of the model.
        folder: For the files of exported models.
        captions: To calibrate an int8 model.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    library, number = backend.split("-")
    if library == "torch":
        return SentenceTransformer(model, device="cpu", model_kwargs={"torch_dtype": getattr(torch, number)})
    exported: Any = library
    found = SentenceTransformer(model, device="cpu", backend=exported, model_kwargs={"export": True})
    if backend == "onnx-int8":
        from sentence_transformers import export_dynamic_quantized_onnx_model

        found.save_pretrained(str(folder))
        has_vnni = "avx512_vnni" in Path("/proc/cpuinfo").read_text()
        export_dynamic_quantized_onnx_model(found, "avx512_vnni" if has_vnni else "avx2", str(folder))
        (file,) = folder.rglob("*_q*.onnx")
        return SentenceTransformer(
            str(folder), device="cpu", backend="onnx", model_kwargs={"file_name": f"onnx/{file.name}"}
        )
    if backend == "openvino-int8":
        quantize_openvino(found, captions[:CALIBRATION_CAPTIONS])
    return found


def quantize_openvino(found: Any, captions: list[str]) -> None:  # noqa: ANN401
    """Quantize weights and activations of an OpenVINO model in place, by the ranges that captions give them."""
    import nncf

    wrapped = found[0].auto_model
    names = [key.get_any_name() for key in wrapped.model.inputs]

    def inputs(caption: str) -> dict[str, Any]:
        tokens = found[0].tokenizer([caption], return_tensors="np")
        return {name: tokens[name] for name in names}

    wrapped.model = nncf.quantize(
        wrapped.model, nncf.Dataset(captions, inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(captions)
    )
    wrapped.request = None
    wrapped.compile()


def main() -> None:
    """Serve encodings until the input ends: arguments are backend, model, file of captions, file for embeddings."""
    backend, model, captions_file, embeddings_file = sys.argv[1:]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    captions = json.loads(Path(captions_file).read_text())
    out, sys.stdout = sys.stdout, sys.stderr  # what the libraries print
    with tempfile.TemporaryDirectory() as folder:
        found = load(backend, model, Path(folder), captions)
    found.max_seq_length = MAX_TOKENS

    def encode(some: list[str], batch_size: int) -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        vectors = found.encode(some, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
        return vectors, time.perf_counter() - began

    first = captions[:CAPTIONS_TO_CHOOSE_BY]
    encode(first, BATCH_SIZES[0])
    best = min(BATCH_SIZES, key=lambda size: encode(first, size)[1])
    vectors, _ = encode(captions, best)
    np.save(embeddings_file, np.asarray(vectors, np.float32))
    print(best, file=out, flush=True)
    for _ in sys.stdin:
        print(encode(captions, best)[1], file=out, flush=True)


if __name__ == "__main__":
    main()
