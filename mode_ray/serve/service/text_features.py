"""Features of the texts that were encoded last, for experts that share a text trunk.

Every expert asks for the class embeddings of a task by itself, in slices of its own. The first one runs the trunk.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from mode_ray.models.shared_trunks import Trunk

_MOST_BYTES = 64 << 20

Compute = Callable[[Sequence[str]], torch.Tensor]


class TextFeatures:
    """A bounded cache. Use it from one thread at a time.

    Args:
        most_bytes: Size of the kept features; those that were not used for longest are dropped first.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[tuple[Trunk, str], torch.Tensor] = OrderedDict()

    def get(self, trunk: Trunk, texts: Sequence[str], compute: Compute) -> torch.Tensor:
        """Features of texts, [b, k].

        Args:
            trunk: What computes them.
            texts: At least one.
            compute: Runs the trunk; called with the texts that are not known, if there are any.
        """
        rows = {text: row for text in texts if (row := self._rows.get((trunk, text))) is not None}
        unknown = [text for text in dict.fromkeys(texts) if text not in rows]
        if unknown:
            rows |= zip(unknown, compute(unknown), strict=True)
        for text, row in rows.items():
            self._keep((trunk, text), row)
        return torch.stack([rows[text] for text in texts])

    def _keep(self, key: tuple[Trunk, str], row: torch.Tensor) -> None:
        if key in self._rows:
            self._rows.move_to_end(key)
            return
        self._rows[key] = row.clone()  # a row of a batch keeps the whole batch in memory
        self._bytes += row.nbytes
        while self._bytes > self._most_bytes:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes
