"""Transformer encoders from a Hugging Face id or folder, including sentence-transformers folders.

This uses transformers, because the paper's SimCSE model needs the pooler output. sentence-transformers would silently
replace it by a mean for that model's folder.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.embed.available import FIELD, require_encoder
from mode_ray.embed.encoder import encoder_name, unit_rows
from mode_ray.embed.pooling import pooling_of
from mode_ray.errors import UsageError
from mode_ray.util.devices import pick_device
from mode_ray.util.packages import resolve_folder
from mode_ray.util.threads import limited_threads


class HuggingFaceEncoder:
    """A transformer with pooler, mean or first-token pooling; see `CaptionEncoder`.

    Args:
        config: Model, pooling, arithmetic.
        placement: Batch size and device.
        threads: CPU threads of the forward pass.

    Raises:
        UsageError: The model cannot be loaded, or has no weights for the configured pooling.
    """

    def __init__(self, config: EncoderConfig, placement: EncoderPlacement, threads: int = 1) -> None:
        require_encoder(config)
        path = resolve_folder(config.model, FIELD)
        self.name = encoder_name(config)
        self._pooling = pooling_of(config, path)
        self._device = pick_device(placement.device)
        self._dtype = getattr(torch, config.dtype)
        self._batch_size = placement.batch_size
        self._max_tokens = config.max_tokens
        self._streams = threads if self._device.type == "cpu" else 1
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path)
            model, loading = AutoModel.from_pretrained(path, output_loading_info=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"encoder.model: {config.model}: cannot be loaded ({reason})") from None
        random = sorted(name for name in loading["missing_keys"] if name.startswith("pooler."))
        if self._pooling == "pooler" and (random or getattr(model, "pooler", None) is None):
            raise UsageError(
                f"encoder.model: {config.model}: has no trained pooler; set encoder.pooling to mean or cls"
            )
        self._model = model.eval().to(self._device)
        if self._dtype != torch.float32:
            # Autocast would convert these weights for every batch. All others stay in float32, as under autocast.
            for module in self._model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.to(self._dtype)
        self.dimension = int(model.config.hidden_size)

    def encode(self, captions: list[str]) -> np.ndarray:
        """Embed captions, sorted by length into batches to reduce padding."""
        if not captions:
            return np.empty((0, self.dimension), np.float32)
        tokens = self._tokenizer(captions, truncation=True, max_length=self._max_tokens)
        lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        order = np.argsort(-lengths, kind="stable")
        embeddings_bd = np.empty((len(captions), self.dimension), np.float32)

        @torch.inference_mode()
        def embed(start: int) -> None:
            chosen = order[start : start + self._batch_size]
            batch = self._tokenizer.pad(
                {name: [values[index] for index in chosen] for name, values in tokens.items()},
                return_tensors="pt",
            ).to(self._device)
            with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
                output = self._model(**batch)
            embeddings_bd[chosen] = self._pool(output, batch["attention_mask"]).float().cpu().numpy()

        starts = range(0, len(captions), self._batch_size)
        # On CPUs, threads process different batches: within one product of so short texts they would mostly wait.
        with (
            limited_threads(1),
            ThreadPoolExecutor(self._streams, initializer=torch.set_num_threads, initargs=(1,)) as streams,
        ):
            for _ in streams.map(embed, starts):
                pass
        return unit_rows(embeddings_bd)

    def _pool(self, output: Any, mask_bt: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - differs by model
        if self._pooling == "pooler":
            pooled_bd: torch.Tensor = output.pooler_output
            return pooled_bd
        hidden_btd: torch.Tensor = output.last_hidden_state
        if self._pooling == "cls":
            return hidden_btd[:, 0]
        weights_bt1 = mask_bt.unsqueeze(-1).to(hidden_btd.dtype)
        return (hidden_btd * weights_bt1).sum(1) / weights_bt1.sum(1).clamp(min=1)
