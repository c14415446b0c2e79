"""The ensemble as an open_clip model, so that code written for open_clip runs on it unmodified.

Such code normalises both sides, so both sides have to be unit vectors. With the weights p_c of one task, sqrt(p_c) on
each side gives unit vectors whose inner product is the ensemble's score: sum over c of p_c cos(f_c(x), g_c(l)).
Without a task every text has weights of its own, which the image side cannot know: the image side has the factor
1 / sqrt(n), and the text side p_c(l), normalised. The inner product is then the ensemble's score times a positive
factor of the text. That keeps the order of the images for each text (image retrieval), but not the order of the texts
for an image.
"""

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own habit)

from mode_ray.ensemble.task import Task
from mode_ray.errors import UsageError
from mode_ray.models.fast_tokens import TextTokenizer
from mode_ray.models.together import encode_images, encode_tokens

if TYPE_CHECKING:
    from mode_ray.ensemble.ensemble import Ensemble

_REMEMBERED_TEXTS = 1 << 20  # about 200 MB
_KEY_BYTES = 16


class EnsembleTokenizer:
    """Texts to int64 [b, context]; remembers the text of each row of tokens, which routing needs.

    Args:
        tokenizer: The experts' tokenizer.
        context_length: The most tokens of a text.
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
            self._texts.move_to_end(row)
        while len(self._texts) > _REMEMBERED_TEXTS:
            self._texts.popitem(last=False)
        return tokens_bt

    def text_of(self, row: bytes) -> str | None:
        """The text that a row of tokens was made of; the latest, if several texts have the same tokens."""
        return self._texts.get(row)


class EnsembleModel(torch.nn.Module):
    """All experts as one model with open_clip's `encode_image`, `encode_text` and `logit_scale`, for inference.

    `to(device)` moves the experts of the ensemble. The arithmetic is that of the ensemble's `dtype`, whatever autocast
    context the caller has.

    Args:
        ensemble: The experts and the router.
        tokenizer: The tokenizer that makes the rows for `encode_text`.
        task: The task, or None where every text is a task of its own.
    """

    logit_scale: torch.Tensor
    logit_bias = None

    def __init__(self, ensemble: "Ensemble", tokenizer: EnsembleTokenizer, task: Task | None) -> None:
        super().__init__()
        self.context_length = tokenizer.context_length
        self._ensemble, self._tokenizer, self._task = ensemble, tokenizer, task
        weights_c = np.ones(ensemble.n) if task is None else task.weights
        self._numbers = [number for number in ensemble.present if weights_c[number] > 0.0]
        self._models = [ensemble.model(number) for number in self._numbers]
        # Registered, so that `to(device)` moves them.
        self.experts = torch.nn.ModuleList(model.module for model in self._models)
        weights_a = weights_c[self._numbers] / weights_c[self._numbers].sum()
        self._roots_a = np.sqrt(weights_a).astype(np.float32)
        scale = float(weights_a @ [model.logit_scale for model in self._models])
        self.register_buffer("logit_scale", torch.tensor(float(np.log(scale))))
        self._classes = {} if task is None else self._class_of_rows(task)
        self.eval()

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:  # noqa: ARG002
        """Embed prepared images.

        Args:
            image: Images as `preprocess` makes them, [b, 3, h, w].
            normalize: Accepted as open_clip has it. The rows are unit vectors in either case.

        Returns:
            float32 [b, sum of dimensions], on the device of `image`.
        """
        sides = [root * rows for root, rows in zip(self._roots_a, encode_images(self._models, image), strict=True)]
        return torch.from_numpy(np.concatenate(sides, axis=1)).to(image.device)

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:  # noqa: ARG002
        """Embed tokenized texts.

        With a task, a prompt of one of its classes is encoded as the class: every expert's mean direction over all
        prompts of that class, as in the ensemble's own classifier.

        Args:
            text: Rows of the ensemble's tokenizer, [b, context].
            normalize: Accepted as open_clip has it. The rows are unit vectors in either case.

        Returns:
            float32 [b, sum of dimensions], on the device of `text`.

        Raises:
            UsageError: Without a task, the rows were not made by the ensemble's tokenizer in this process.
        """
        rows = _keys(text)
        weights_ba = self._text_weights(rows)
        sides = [weights_ba[:, place, None] * rows for place, rows in enumerate(encode_tokens(self._models, text))]
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
        """Weights of the used experts for each text, float32 [b, used experts]."""
        if self._task is not None:
            return np.tile(self._roots_a, (len(rows), 1))
        texts = [self._tokenizer.text_of(row) for row in rows]
        known = [text for text in texts if text is not None]
        if len(known) < len(texts):
            raise UsageError(
                "encode_text: unknown tokens: tokenize by ensemble.get_tokenizer(), in this process, so that the "
                "texts can be routed"
            )
        return self._ensemble.weights_of_each(known)[:, self._numbers].astype(np.float32)

    def _class_of_rows(self, task: Task) -> dict[bytes, torch.Tensor]:
        """The classifier's row by the tokens of each prompt, without prompts that two different classes share."""
        sides = [
            root * classifier
            for root, number in zip(self._roots_a, self._numbers, strict=True)
            if (classifier := task.classifiers[number]) is not None
        ]
        rows_ld = torch.from_numpy(np.concatenate(sides, axis=1))
        found: dict[bytes, torch.Tensor] = {}
        shared: set[bytes] = set()
        for texts, row_d in zip(task.class_texts, rows_ld, strict=True):
            for key in _keys(self._tokenizer(list(texts))):
                if not torch.equal(found.setdefault(key, row_d), row_d):
                    shared.add(key)
        return {key: row_d for key, row_d in found.items() if key not in shared}


def _keys(tokens_bt: torch.Tensor) -> list[bytes]:
    """A short hash of every row."""
    rows_bt = np.ascontiguousarray(tokens_bt.detach().cpu().numpy().astype(np.int64))
    return [hashlib.blake2b(row_t.tobytes(), digest_size=_KEY_BYTES).digest() for row_t in rows_bt]
