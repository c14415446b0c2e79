"""Embeds images by all models, each distinct image once: tasks over the same files mostly have the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from mode_ray.models.encode import Expert
from mode_ray.models.together import encode_pixels
from mode_ray.pairs.images import Pixels

_DIGEST_BYTES = 16

Rows = tuple[np.ndarray, ...]
"""Unit rows of one image by all models, float32 [d] each."""


@dataclass(eq=False)
class KnownImages:
    """Models, and the embeddings of images that they have seen.

    Attributes:
        experts: The models by name.
        most_bytes: Embeddings that are kept; later images are embedded again for every task.
    """

    experts: Mapping[str, Expert]
    most_bytes: int = 1 << 28
    _kept: dict[bytes, Rows] = field(default_factory=dict)
    _kept_bytes: int = 0

    def encode(self, images: Sequence[Pixels]) -> dict[str, np.ndarray]:
        """Unit rows of prepared images by model, float32 [i, d]; there is at least one image."""
        digests = [_digest(pixels_hw3) for pixels_hw3 in images]
        by_digest = dict(zip(digests, images, strict=True))
        new = {digest: pixels_hw3 for digest, pixels_hw3 in by_digest.items() if digest not in self._kept}
        found = dict(zip(new, self._embed(list(new.values())), strict=True))
        rows = [found.get(digest) or self._kept[digest] for digest in digests]
        self._keep(found)
        return {name: np.stack(own) for name, own in zip(self.experts, zip(*rows, strict=True), strict=True)}

    def _embed(self, images: Sequence[Pixels]) -> list[Rows]:
        if not images:
            return []
        return list(zip(*encode_pixels(list(self.experts.values()), np.stack(images)), strict=True))

    def _keep(self, found: Mapping[bytes, Rows]) -> None:
        for digest, rows in found.items():
            self._kept_bytes += sum(row.nbytes for row in rows)
            if self._kept_bytes > self.most_bytes:
                return
            self._kept[digest] = tuple(row.copy() for row in rows)  # not a view of the whole batch


def _digest(pixels_hw3: Pixels) -> bytes:
    return blake2b(pixels_hw3.tobytes(), digest_size=_DIGEST_BYTES).digest()
