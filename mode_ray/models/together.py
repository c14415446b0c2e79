"""Several models encode the same images or texts: a trunk that some of them share runs once."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.models.encode import TEXTS_AT_ONCE, Embeddings, Expert, Precision
from mode_ray.models.shared_trunks import Trunk, Trunks
from mode_ray.storage import Location

_Name = TypeVar("_Name")


def load_experts(
    folders: Mapping[_Name, Location],
    device: str = "auto",
    precision: Precision = "float32",
    threads: int | None = None,
) -> dict[_Name, Expert]:
    """Load models; those with equal trunks hold one in memory. Arguments as of `Expert`.

    Raises:
        DataError: A folder is missing, incomplete or damaged.
    """
    trunks = Trunks()
    return {name: Expert(folder, device, precision, threads, trunks) for name, folder in folders.items()}


def by_image_trunk(experts: Mapping[_Name, Expert]) -> list[dict[_Name, Expert]]:
    """Models with equal image trunks, group by group."""
    groups: dict[Trunk, dict[_Name, Expert]] = {}
    for name, expert in experts.items():
        groups.setdefault(expert.image_trunk, {})[name] = expert
    return list(groups.values())


def encode_images(experts: Sequence[Expert], images_b3hw: torch.Tensor) -> list[Embeddings]:
    """Every model's unit embeddings of prepared images, float32 [b, d] each."""
    features = _of_each_trunk(
        {expert.image_trunk: expert for expert in experts}, lambda expert: expert.image_features(images_b3hw)
    )
    return [expert.embed_images(features[expert.image_trunk]) for expert in experts]


def encode_pixels(experts: Sequence[Expert], images_bhw3: npt.NDArray[np.uint8]) -> list[Embeddings]:
    """The same for images of the models' size."""
    features = _of_each_trunk(
        {expert.image_trunk: expert for expert in experts}, lambda expert: expert.pixel_features(images_bhw3)
    )
    return [expert.embed_images(features[expert.image_trunk]) for expert in experts]


def encode_tokens(experts: Sequence[Expert], tokens_bt: torch.Tensor) -> list[Embeddings]:
    """Every model's unit embeddings of tokenized texts, float32 [b, d] each."""
    features = _of_each_trunk(
        {expert.text_trunk: expert for expert in experts}, lambda expert: expert.token_features(tokens_bt)
    )
    return [expert.embed_texts(features[expert.text_trunk]) for expert in experts]


def encode_texts(experts: Sequence[Expert], texts: Sequence[str]) -> list[Embeddings]:
    """Every model's unit embeddings of texts, float32 [l, d] each; there is at least one text."""
    pieces = (list(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE))
    return [np.concatenate(parts) for parts in zip(*(_encode_piece(experts, piece) for piece in pieces), strict=True)]


def _encode_piece(experts: Sequence[Expert], texts: list[str]) -> list[Embeddings]:
    features = _of_each_trunk(
        {expert.text_trunk: expert for expert in experts},
        lambda expert: expert.token_features(expert.tokenizer(texts)),
    )
    return [expert.embed_texts(features[expert.text_trunk]) for expert in experts]


def _of_each_trunk(
    by_trunk: Mapping[Trunk, Expert], compute: Callable[[Expert], torch.Tensor]
) -> dict[Trunk, torch.Tensor]:
    return {trunk: compute(expert) for trunk, expert in by_trunk.items()}
