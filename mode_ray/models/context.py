"""Which texts are longer than the context of a model: the model does not see their end."""

from collections.abc import Callable, Sequence

import torch

from mode_ray.models.clip import load_tokenizer
from mode_ray.models.encode import CONTEXT_LENGTH
from mode_ray.models.fast_tokens import fast_tokenizer
from mode_ray.models.preprocess import read_model_config
from mode_ray.storage import Location


class TextContext:
    """Finds texts that are cut.

    Args:
        tokenizer: Texts and a context length to int64 [b, context length], padded at the end.
        length: Tokens that the model reads.
    """

    def __init__(self, tokenizer: Callable[[list[str], int], torch.Tensor], length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length

    @classmethod
    def of_model(cls, folder: Location) -> "TextContext":
        """The context of a model in an expert folder.

        Raises:
            DataError: Its config is missing, or is not one of an open_clip model.
        """
        length = read_model_config(folder)["model_cfg"]["text_cfg"].get("context_length", CONTEXT_LENGTH)
        return cls(fast_tokenizer(load_tokenizer(folder)), int(length))  # type: ignore[arg-type]

    def are_cut(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text needs more tokens than the model reads."""
        # With room for one more token, only a text that is too long fills the last place: the others have padding.
        tokens_bt = self._tokenizer([*texts, ""], self.length + 1)
        cut: list[bool] = (tokens_bt[:-1, -1] != tokens_bt[-1, -1]).tolist()
        return cut
