"""The ensemble as an open_clip model, so that code written for open_clip runs on it unmodified.

Such code normalises both sides, so both sides have to be unit vectors. With the weights p_c of one task, sqrt(p_c) on
each side gives unit vectors whose inner product is the ensemble's score: sum over c of p_c cos(f_c(x), g_c(l)).
Without a task every text has weights of its own, which the image side cannot know: the image side carries 1 / sqrt(n),
and the text side p_c(l), normalised. The inner product is then the ensemble's score times a positive factor of the
text. That keeps the order of the images for each text (image retrieval), not the order of the texts for an image.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own habit)

from mode_ray.ensemble.task import Task
from mode_ray.errors import UsageError
from mode_ray.models.fast_tokens import TextTokenizer

if TYPE_CHECKING:
    from mode_ray.ensemble.ensemble import Ensemble

_REMEMBERED_TEXTS = 1 << 20


class EnsembleTokenizer:
    """Texts to int64 [b, context]; remembers which text a row of tokens came from, which routing needs.

    Args:
        tokenizer: Of the experts.
        context_length: Tokens of a text at most.
    """

    def __init__(self, tokenizer: TextTokenizer, context_length: int) -> None:
        self.context_length = context_length
        self._tokenizer = tokenizer
        self._texts: OrderedDict[bytes, str] = OrderedDict()

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> torch.Tensor:
        """Tokenize texts.

        Raises:
            UsageError: Another context length than the experts'.
        """
        if context_length not in (None, self.context_length):
            raise UsageError(f"context_length={context_length}: the experts take {self.context_length} tokens")
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens_bt = self._tokenizer(texts)
        for row, text in zip(_keys(tokens_bt), texts, strict=True):
            self._texts[row] = text
        while len(self._texts) > _REMEMBERED_TEXTS:
            self._texts.popitem(last=False)
        return tokens_bt

    def text_of(self, row: bytes) -> str | None:
        """The text that a row of tokens was made of."""
        return self._texts.get(row)


class EnsembleModel(torch.nn.Module):
    """All experts as one model with `encode_image`, `encode_text` and `logit_scale`; for inference only.

    Args:
        ensemble: The experts and the router.
        tokenizer: The tokenizer that `encode_text` gets its rows from.
        task: The task, or None where every text is a task of its own.
    """

    logit_scale: torch.Tensor

    def __init__(self, ensemble: "Ensemble", tokenizer: EnsembleTokenizer, task: Task | None) -> None:
        super().__init__()
        self._ensemble, self._tokenizer, self._task = ensemble, tokenizer, task
        self._experts = [
            (number, expert)
            for number, expert in enumerate(ensemble.experts)
            if expert is not None and (task is None or task.weights[number] > 0.0)
        ]
        weights_c = np.full(ensemble.n, 1.0 / len(self._experts)) if task is None else task.weights
        self._image_weights = np.sqrt([weights_c[number] for number, _ in self._experts]).astype(np.float32)
        scale = sum(weights_c[number] * expert.logit_scale for number, expert in self._experts)
        self.register_buffer("logit_scale", torch.tensor(float(np.log(scale))))
        self._classes = {} if task is None else self._class_of_rows(task)
        self.eval()

    @torch.inference_mode()
    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:  # noqa: ARG002
        """Unit rows of prepared images, float32 [b, sum of dimensions], whether `normalize` is set or not."""
        sides = [
            weight * expert.encode_images(image)
            for weight, (_, expert) in zip(self._image_weights, self._experts, strict=True)
        ]
        return torch.from_numpy(np.concatenate(sides, axis=1)).to(image.device)

    @torch.inference_mode()
    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:  # noqa: ARG002
        """Unit rows of tokenized texts, float32 [b, sum of dimensions], whether `normalize` is set or not.

        With a task, a prompt of one of its classes is encoded as the class: every expert's mean direction over all
        prompts of that class, as the ensemble's own classifier has it.

        Raises:
            UsageError: Without a task, the rows are not of this ensemble's tokenizer.
        """
        rows = _keys(text)
        weights_bc = self._text_weights(rows)
        sides = [
            weights_bc[:, place, None] * expert.encode_tokens(text) for place, (_, expert) in enumerate(self._experts)
        ]
        result = torch.from_numpy(np.concatenate(sides, axis=1).astype(np.float32))
        for place, row in enumerate(rows):
            if row in self._classes:
                result[place] = self._classes[row]
        return F.normalize(result, dim=-1).to(text.device)

    def forward(
        self, image: torch.Tensor | None = None, text: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """(image features, text features, logit scale), as an open_clip model returns them."""
        return (
            None if image is None else self.encode_image(image),
            None if text is None else self.encode_text(text),
            self.logit_scale.exp(),
        )

    def _text_weights(self, rows: list[bytes]) -> np.ndarray:
        if self._task is not None:
            return np.tile(self._image_weights, (len(rows), 1))
        texts = [self._tokenizer.text_of(row) for row in rows]
        known = [text for text in texts if text is not None]
        if len(known) < len(texts):
            raise UsageError("encode_text: unknown tokens: tokenize with ensemble.get_tokenizer()")
        weights_bc = self._ensemble.weights_of_each(known)
        return weights_bc[:, [number for number, _ in self._experts]].astype(np.float32)

    def _class_of_rows(self, task: Task) -> dict[bytes, torch.Tensor]:
        """The classifier's row by the tokens of each prompt; prompts that two classes share are left out."""
        sides = [
            weight * classifier
            for weight, (number, _) in zip(self._image_weights, self._experts, strict=True)
            if (classifier := task.classifiers[number]) is not None
        ]
        rows_ld = torch.from_numpy(np.concatenate(sides, axis=1))
        found: dict[bytes, torch.Tensor] = {}
        shared: set[bytes] = set()
        for texts, row_d in zip(task.class_texts, rows_ld, strict=True):
            keys = set(_keys(self._tokenizer(list(texts))))
            shared |= keys & set(found)
            found |= dict.fromkeys(keys, row_d)
        return {key: row_d for key, row_d in found.items() if key not in shared}


def _keys(tokens_bt: torch.Tensor) -> list[bytes]:
    rows = tokens_bt.detach().cpu().numpy().astype(np.int64)
    return [row.tobytes() for row in np.ascontiguousarray(rows)]
