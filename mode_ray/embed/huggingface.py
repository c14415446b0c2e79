"""Transformer encoders from a Hugging Face id or folder, including sentence-transformers folders.

This uses transformers, because the paper's SimCSE model needs the pooler output. sentence-transformers would silently
replace it by a mean for that model's folder.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.embed.available import FIELD, require_encoder
from mode_ray.embed.compiled import CompiledTransformer
from mode_ray.embed.encoder import encoder_name, unit_rows
from mode_ray.embed.pooling import pooling_of
from mode_ray.embed.token_chunks import Batch, ChunkTokenizer, TokenChunk, chunk_starts
from mode_ray.errors import UsageError, first_line
from mode_ray.util.devices import pick_device
from mode_ray.util.packages import resolve_folder
from mode_ray.util.read_ahead import read_ahead
from mode_ray.util.threads import limited_threads

_ROWS_PER_CHUNK = 65_536
_LEAST_ROWS_PER_CHUNK = 8_192
_CPU_BATCH, _GPU_BATCH = 64, 1_024
_PROBES = (["a dog"], ["two red cars in front of an old house at night", "a cat"])
"""Batches of two shapes, on which a compiled model is compared with torch."""

_Encoded: TypeAlias = tuple[int, np.ndarray, np.ndarray]
"""First row of a chunk, the order of its rows, and their embeddings."""


class HuggingFaceEncoder:
    """A transformer with pooler, mean or first-token pooling; see `CaptionEncoder`.

    Args:
        config: Model, pooling, arithmetic.
        placement: Batch size and device.
        threads: CPU threads of the tokenizer and, without a GPU, of the forward pass.
        rows_per_chunk: Captions that are tokenized ahead of the model, and whose embeddings leave a GPU in one copy.

    Raises:
        UsageError: The model cannot be loaded, or has no weights for the configured pooling.
    """

    def __init__(
        self,
        config: EncoderConfig,
        placement: EncoderPlacement,
        threads: int = 1,
        rows_per_chunk: int = _ROWS_PER_CHUNK,
    ) -> None:
        require_encoder(config)
        path = resolve_folder(config.model, FIELD)
        self.name = encoder_name(config)
        self._pooling = pooling_of(config, path)
        self._device = pick_device(placement.device)
        self._on_cpu = self._device.type == "cpu"
        self._dtype = _dtype(config.dtype, self._device)
        self._threads = threads
        self._rows_per_chunk = rows_per_chunk
        # The bar has no end of line where standard error is a file, and a start of the service is not its output.
        disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            # transformers chooses torch's fused attention (sdpa) for every architecture that has it.
            model, loading = AutoModel.from_pretrained(path, output_loading_info=True)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise UsageError(f"encoder.model: {config.model}: cannot be loaded ({reason})") from None
        random = sorted(name for name in loading["missing_keys"] if name.startswith("pooler."))
        if self._pooling == "pooler" and (random or getattr(model, "pooler", None) is None):
            raise UsageError(
                f"encoder.model: {config.model}: has no trained pooler; set encoder.pooling to mean or cls"
            )
        self.dimension = int(model.config.hidden_size)
        batch_size = placement.batch_size or (_CPU_BATCH if self._on_cpu else _GPU_BATCH)
        self._tokenizer = ChunkTokenizer(tokenizer, config.max_tokens, batch_size)
        if config.dtype == "int8" and not self._on_cpu:
            raise UsageError("encoder.dtype: int8 is for CPUs: set bfloat16, or embed.encoder.device=cpu")
        if config.dtype == "int8" or (placement.runtime == "openvino" and self._on_cpu):
            self._model: Callable[..., Any] = self._compiled(model.eval(), config.dtype)
            self._dtype = torch.float32  # of what it returns
        else:
            self._model = _with_linear_layers_in(self._dtype, model.eval().to(self._device))

    def _compiled(self, model: torch.nn.Module, dtype: str) -> CompiledTransformer:
        with ThreadPoolExecutor(1) as tokenizing:
            chunks = [self._tokenizer.chunk(captions, tokenizing) for captions in _PROBES]
        probes = [chunk.inputs(chunk.batches[0]) for chunk in chunks]
        return CompiledTransformer(model, "float32" if dtype == "auto" else dtype, probes, self._threads)

    def encode(self, captions: list[str]) -> np.ndarray:
        """Embed captions in chunks, each sorted by length into batches to reduce padding.

        The next chunk is tokenized while the model encodes one. On a GPU, tokens come from pinned memory in one copy a
        chunk, and the embeddings of a chunk are copied back while the GPU works on the next one.
        """
        if not captions:
            return np.empty((0, self.dimension), np.float32)
        embeddings_bd = np.empty((len(captions), self.dimension), np.float32)
        least = self._rows_per_chunk if self._on_cpu else min(self._rows_per_chunk, _LEAST_ROWS_PER_CHUNK)
        starts = chunk_starts(len(captions), self._rows_per_chunk, least)

        with limited_threads(1), ThreadPoolExecutor(self._threads) as tokenizing:

            def tokenize(start: int) -> TokenChunk:
                chunk = self._tokenizer.chunk(captions[start : start + starts.step], tokenizing)
                return chunk if self._on_cpu else chunk.pin_memory()

            chunks = zip(starts, read_ahead(tokenize, starts, ahead=1), strict=True)
            encode = self._encode_on_cpu if self._on_cpu else self._encode_on_gpu
            for start, order_b, rows_bd in encode(chunks):
                embeddings_bd[start + order_b] = rows_bd
        return unit_rows(embeddings_bd)

    def _encode_on_cpu(self, chunks: Iterable[tuple[int, TokenChunk]]) -> Iterator[_Encoded]:
        # Threads process different batches: within one product of so short texts they would mostly wait.
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as streams:
            for start, chunk in chunks:
                parts = list(streams.map(partial(self._embed, chunk), chunk.batches))
                yield start, chunk.order_b, torch.cat(parts).numpy()

    def _encode_on_gpu(self, chunks: Iterable[tuple[int, TokenChunk]]) -> Iterator[_Encoded]:
        waiting: tuple[int, np.ndarray, torch.Tensor, torch.cuda.Event] | None = None
        for start, chunk in chunks:
            moved = chunk.to(self._device)
            rows_bd = torch.cat([self._embed(moved, batch) for batch in moved.batches])
            copied_bd = torch.empty(rows_bd.shape, pin_memory=True).copy_(rows_bd, non_blocking=True)
            is_copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            is_copied.record()
            # Only now, with this chunk queued, wait for the one before it.
            if waiting is not None:
                yield _copied(*waiting)
            waiting = start, chunk.order_b, copied_bd, is_copied
        if waiting is not None:
            yield _copied(*waiting)

    @torch.inference_mode()
    def _embed(self, chunk: TokenChunk, batch: Batch) -> torch.Tensor:
        inputs = chunk.inputs(batch)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            output = self._model(**inputs)
        return self._pool(output, inputs["attention_mask"]).float()

    def _pool(self, output: Any, mask_bt: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - differs by model
        if self._pooling == "pooler":
            pooled_bd: torch.Tensor = output.pooler_output
            return pooled_bd
        hidden_btd: torch.Tensor = output.last_hidden_state
        if self._pooling == "cls":
            return hidden_btd[:, 0]
        weights_bt1 = mask_bt.unsqueeze(-1).to(hidden_btd.dtype)
        return (hidden_btd * weights_bt1).sum(1) / weights_bt1.sum(1).clamp(min=1)


def _with_linear_layers_in(dtype: torch.dtype, model: torch.nn.Module) -> torch.nn.Module:
    if dtype != torch.float32:
        # Autocast would convert these weights for every batch. All others stay in float32, as under autocast.
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(dtype)
    return model


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of a config; `auto` is bfloat16 on GPUs that compute in it, else float32. int8 is OpenVINO's."""
    if name not in ("auto", "int8"):
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def _copied(start: int, order_b: np.ndarray, rows_bd: torch.Tensor, is_copied: torch.cuda.Event) -> _Encoded:
    is_copied.synchronize()
    return start, order_b, rows_bd.numpy()
