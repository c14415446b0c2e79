"""Static word tables: the mean of token vectors. Much cheaper than a transformer, for drafts and tests."""

from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
import torch
from safetensors.torch import load_file

from mode_ray.config.captions import EncoderConfig
from mode_ray.embed.available import FIELD, TABLE_PATTERNS, TOKENIZER_PATTERNS, only_file
from mode_ray.embed.encoder import encoder_name, unit_rows
from mode_ray.errors import UsageError
from mode_ray.util.packages import resolve_folder

_CAPTIONS_AT_ONCE = 8192


class StaticEncoder:
    """Mean of the token vectors of a table; see `CaptionEncoder`.

    The folder contains one `*.safetensors` with one matrix [vocabulary, d], and one `tokenizer.json` or
    `*tokenizer*.json` (the layouts of model2vec and wordllama).

    Raises:
        UsageError: The folder has other contents.
    """

    def __init__(self, config: EncoderConfig) -> None:
        folder = Path(resolve_folder(config.model, FIELD))
        self.name = encoder_name(config)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(only_file(folder, TOKENIZER_PATTERNS, config)))
        # wordllama's tokenizer pads to its training length; the mean must exclude padding.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.max_tokens)
        weights = only_file(folder, TABLE_PATTERNS, config)
        matrices = [tensor for tensor in load_file(weights).values() if tensor.ndim == 2]
        if len(matrices) != 1:
            raise UsageError(f"{weights}: contains {len(matrices)} matrices; a static encoder has exactly one")
        self._table_vd = matrices[0].float()
        self.dimension = int(self._table_vd.shape[1])

    def encode(self, captions: list[str]) -> np.ndarray:
        """Embed captions; a caption without a known token gives a zero row."""
        parts = [
            self._encode_some(captions[start : start + _CAPTIONS_AT_ONCE])
            for start in range(0, len(captions), _CAPTIONS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def _encode_some(self, captions: list[str]) -> np.ndarray:
        encodings = self._tokenizer.encode_batch_fast(captions, add_special_tokens=False)
        token_lists = [encoding.ids for encoding in encodings]
        ends = np.cumsum([len(ids) for ids in token_lists], dtype=np.int64)
        offsets = torch.from_numpy(np.concatenate([[0], ends[:-1]]))
        tokens = torch.from_numpy(np.fromiter(chain.from_iterable(token_lists), np.int64, count=int(ends[-1])))
        means_bd = torch.nn.functional.embedding_bag(tokens, self._table_vd, offsets, mode="mean")
        return unit_rows(means_bd.numpy())
