"""Batches of features instead of images and captions, gathered from mapped files without a loop over samples."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from mode_ray.errors import DataError
from mode_ray.pairs.feature_rows import FeatureRows
from mode_ray.pairs.index import PairIndex
from mode_ray.pairs.order import PairOrder
from mode_ray.train.step.batch import TrainBatch
from mode_ray.train.step.batch_counts import LEDGER_MODULUS
from mode_ray.util.counter_random import mix, uniform_numbers

_BYTES = 2  # of a number in float16


class FeatureDataset:
    """Gathers the features of the samples at given positions of the sequence.

    A position of the sequence determines its pair, by the order, and its view, by the seed.

    Args:
        rows: The features of the run's pairs.
        index: The training set.
        order: The order of its samples.
        seed: Seed of the views.

    Raises:
        DataError: A pair of the training set has no features.
    """

    def __init__(self, rows: FeatureRows, index: PairIndex, order: PairOrder, seed: int) -> None:
        self._rows = rows
        self._pairs = rows.pairs_of(index)
        self._order = order
        self._seed = seed

    @property
    def sample_bytes(self) -> int:
        """Memory of one sample of a batch."""
        return _BYTES * int(self._rows.images_ivk.shape[2] + self._rows.texts_lk.shape[1])

    def __getitem__(self, positions: Sequence[int]) -> TrainBatch:
        """The samples at these positions, as one batch."""
        position_b = _numbers(positions)
        rows, views = self._rows, self._rows.images_ivk.shape[1]
        pair_b = self._pairs[self._order.pairs_at(position_b)]
        view_b = (uniform_numbers(f"views {self._seed}", position_b, 1)[:, 0] * views).astype(np.int64)
        caption_id_b = rows.caption_id_p[pair_b]
        seen_b = mix(_bits(position_b)) ^ _bits(caption_id_b)
        ledger_b = mix(mix(seen_b) ^ _bits(pair_b * views + view_b))
        bad: tuple[str, ...] = ()
        is_good_b = rows.image_p[pair_b] >= 0
        if not is_good_b.all():
            bad = tuple(rows.problems[pair] for pair in pair_b[~is_good_b].tolist())
            good = np.flatnonzero(is_good_b)
            if len(good) == 0:
                raise DataError(f"no image of a whole batch can be decoded; the first: {bad[0]}")
            # Every rank must contribute the same number of samples, so pairs with an image replace the others.
            chosen = np.resize(good, len(pair_b))
            pair_b, view_b, caption_id_b = pair_b[chosen], view_b[chosen], caption_id_b[chosen]
        return TrainBatch(
            images=torch.from_numpy(rows.images_ivk[rows.image_p[pair_b], view_b]),
            texts=torch.from_numpy(rows.texts_lk[rows.text_p[pair_b]]),
            caption_ids=torch.from_numpy(caption_id_b),
            bad_images=bad,
            ledger=int(ledger_b.sum(dtype=np.uint64)) % LEDGER_MODULUS,
        )

    def batches(self, positions: Iterable[Sequence[int]]) -> Iterator[TrainBatch]:
        """Batches in order."""
        return map(self.__getitem__, positions)


def _bits(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    return values.view(np.uint64)


def _numbers(positions: Sequence[int]) -> npt.NDArray[np.int64]:
    if isinstance(positions, range):
        return np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
    return np.asarray(positions, np.int64)
