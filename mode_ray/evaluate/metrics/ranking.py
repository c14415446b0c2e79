"""Ranks of the right answers among scores, for metrics that count hits among the first few.

Ties go by index everywhere: of equal scores the one with the lower index ranks first, as argmax has it. A
model whose scores are all equal therefore gets what guessing one fixed answer gets, and the order of equal
scores never depends on a library's sort.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

_SCORES_AT_ONCE = 1 << 23

Ranks = npt.NDArray[np.int64]


def label_ranks(scores_il: npt.NDArray[np.floating], labels_i: npt.NDArray[np.integer]) -> Ranks:
    """Rank (0 = first) of every image's right class."""
    label_scores_i = np.take_along_axis(scores_il, labels_i[:, None], axis=1)
    before_il = np.arange(scores_il.shape[1]) < labels_i[:, None]
    ahead_il = (scores_il > label_scores_i) | ((scores_il == label_scores_i) & before_il)
    rank_i: Ranks = ahead_il.sum(axis=1)
    return rank_i


def right_pairs(
    image_of_text: npt.NDArray[np.integer], captions: Sequence[str] | None, images: int
) -> sparse.csr_array:
    """Which text is right for which image: boolean, images by texts.

    Args:
        image_of_text: The row of every text's image.
        captions: The texts: equal ones are right for each other's images; by default all count as different.
        images: Number of images.
    """
    texts = len(image_of_text)
    caption_ids: dict[str, int] = {}
    caption_j = (
        np.arange(texts)
        if captions is None
        else np.array([caption_ids.setdefault(caption, len(caption_ids)) for caption in captions])
    )
    has_ic = sparse.csr_array((np.ones(texts, bool), (image_of_text, caption_j)), shape=(images, texts))
    return has_ic[:, caption_j].astype(bool).tocsr()


def best_ranks(scores_qa: npt.NDArray[np.floating], right_qa: sparse.csr_array) -> Ranks:
    """Rank (0 = first) of every query's best right answer; without a right answer, the number of answers."""
    queries, answers = scores_qa.shape
    ranks = np.full(queries, answers, dtype=np.int64)
    step = max(1, _SCORES_AT_ONCE // answers)
    for start in range(0, queries, step):
        scores = scores_qa[start : start + step]
        right = right_qa[start : start + step].toarray()
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        first = (right & (scores == best)).argmax(axis=1)
        ahead = (scores > best) | ((scores == best) & (np.arange(answers) < first[:, None]))
        ranks[start : start + step] = np.where(right.any(axis=1), ahead.sum(axis=1), answers)
    return ranks
