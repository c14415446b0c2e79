"""Captions as padded batches of token ids, prepared in chunks ahead of the model.

A chunk is one flat array, so that it is copied to a GPU at once. Its captions are sorted by length, so that the
batches need little padding.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ROWS_PER_CALL = 4_096


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of a chunk: rows `first` to `first + rows` of its order, each padded to `length` tokens."""

    first: int
    rows: int
    length: int
    offset: int


@dataclass(frozen=True, eq=False)
class TokenChunk:
    """The batches of a chunk.

    Attributes:
        order_b: int64 [b], position in the chunk of each row, the longest caption first.
        lengths_b: int64 [b], tokens of each row.
        tokens: int32, the padded batches one after the other.
        types: int32, the token types alike; None for tokenizers whose types are all 0.
        batches: The batches.
    """

    order_b: npt.NDArray[np.int64]
    lengths_b: torch.Tensor
    tokens: torch.Tensor
    types: torch.Tensor | None
    batches: Sequence[Batch]

    def to(self, device: torch.device) -> "TokenChunk":
        """Copy the tensors to a device; from pinned memory, the copy overlaps with work of the device."""
        moved = [None if one is None else one.to(device, non_blocking=True) for one in self._tensors]
        return TokenChunk(self.order_b, moved[0], moved[1], moved[2], self.batches)  # type: ignore[arg-type]

    def pin_memory(self) -> "TokenChunk":
        """Page-lock the tensors."""
        pinned = [None if one is None else one.pin_memory() for one in self._tensors]
        return TokenChunk(self.order_b, pinned[0], pinned[1], pinned[2], self.batches)  # type: ignore[arg-type]

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The inputs of transformers' models for a batch, int64 [rows, length], on the device of the chunk."""

        def part(flat: torch.Tensor) -> torch.Tensor:
            values = flat[batch.offset : batch.offset + batch.rows * batch.length]
            return values.view(batch.rows, batch.length).long()

        lengths_b1 = self.lengths_b[batch.first : batch.first + batch.rows, None]
        places_t = torch.arange(batch.length, device=self.tokens.device)
        inputs = {"input_ids": part(self.tokens), "attention_mask": (places_t < lengths_b1).long()}
        return inputs if self.types is None else {**inputs, "token_type_ids": part(self.types)}

    @property
    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return self.lengths_b, self.tokens, self.types


class ChunkTokenizer:
    """Makes chunks with a tokenizer of transformers.

    Args:
        tokenizer: The tokenizer.
        max_tokens: Longer captions are cut.
        batch_size: Rows of a batch.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, batch_size: int) -> None:  # noqa: ANN401 - differs by model
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        self._pad = int(tokenizer.pad_token_id or 0)
        self._pad_type = int(getattr(tokenizer, "pad_token_type_id", 0) or 0)
        first = self._tokenize(["a"])
        self._has_types = any(chain.from_iterable(first.get("token_type_ids", [])))

    def chunk(self, captions: Sequence[str], threads: Executor) -> TokenChunk:
        """Tokenize captions; the tokenizer runs in several threads, and releases Python's lock."""
        calls = [captions[start : start + _ROWS_PER_CALL] for start in range(0, len(captions), _ROWS_PER_CALL)]
        parts = list(threads.map(self._packed, calls))
        lengths_b = np.concatenate([lengths for lengths, _ in parts])
        order_b = np.argsort(-lengths_b, kind="stable")
        ends_b = np.cumsum(lengths_b)
        batches, offset = [], 0
        for first in range(0, len(order_b), self._batch_size):
            rows, length = min(self._batch_size, len(order_b) - first), int(lengths_b[order_b[first]])
            batches.append(Batch(first, rows, length, offset))
            offset += rows * length
        values = [np.concatenate([flat[place] for _, flat in parts]) for place in range(1 + self._has_types)]
        pads = (self._pad, self._pad_type)
        padded = [
            _padded(flat, lengths_b[order_b], (ends_b - lengths_b)[order_b], batches, pad)
            for flat, pad in zip(values, pads, strict=False)
        ]
        types = padded[1] if self._has_types else None
        return TokenChunk(order_b, torch.from_numpy(lengths_b[order_b]), padded[0], types, batches)

    def _tokenize(self, captions: Sequence[str]) -> Any:  # noqa: ANN401
        return self._tokenizer(
            list(captions), truncation=True, max_length=self._max_tokens, return_attention_mask=False
        )

    def _packed(self, captions: Sequence[str]) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int32]]]:
        """Lengths of the captions, and their tokens (and types) one after the other."""
        encoded = self._tokenize(captions)
        ids = encoded["input_ids"]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        names = ["input_ids", "token_type_ids"] if self._has_types else ["input_ids"]
        total = int(lengths.sum())
        return lengths, [np.fromiter(chain.from_iterable(encoded[name]), np.int32, total) for name in names]


def _padded(
    flat: npt.NDArray[np.int32],
    lengths_b: npt.NDArray[np.int64],
    begins_b: npt.NDArray[np.int64],
    batches: Sequence[Batch],
    pad: int,
) -> torch.Tensor:
    """Rows of `flat`, given by length and begin in the order of the batches, each padded to its batch's length."""
    widths_b = np.repeat([batch.length for batch in batches], [batch.rows for batch in batches])
    starts_b = np.cumsum(widths_b) - widths_b
    padded = np.full(int(widths_b.sum()), pad, np.int32)
    within = np.arange(int(lengths_b.sum())) - np.repeat(np.cumsum(lengths_b) - lengths_b, lengths_b)
    padded[np.repeat(starts_b, lengths_b) + within] = flat[np.repeat(begins_b, lengths_b) + within]
    return torch.from_numpy(padded)


def chunk_starts(rows: int, most: int, least: int) -> range:
    """First rows of chunks: at least four of them where each still has `least` rows, each of at most `most` rows."""
    return range(0, rows, max(least, min(most, -(-rows // 4))))
