"""Ranks of the right answers, for metrics that count hits among the first few.

Of equal scores, the one with the lower index ranks first, as in argmax. So a model with constant scores gets the
result of one fixed guess, and the order of equal scores does not depend on the sort of a library.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported at their first use: the driver does without them

_SCORES_AT_ONCE = 1 << 23

Ranks = npt.NDArray[np.int64]


def label_ranks(scores_il: npt.NDArray[np.floating], labels_i: npt.NDArray[np.integer]) -> Ranks:
    """Rank (0 = first) of the right class of every image."""
    label_scores_i = np.take_along_axis(scores_il, labels_i[:, None], axis=1)
    before_il = np.arange(scores_il.shape[1]) < labels_i[:, None]
    ahead_il = (scores_il > label_scores_i) | ((scores_il == label_scores_i) & before_il)
    rank_i: Ranks = ahead_il.sum(axis=1)
    return rank_i


def right_pairs(
    image_of_text: npt.NDArray[np.integer], captions: Sequence[str] | None, images: int
) -> "scipy.sparse.csr_array":
    """Which text is right for which image: boolean, images by texts.

    Args:
        image_of_text: Row of the image of every text.
        captions: The texts, if equal ones are right for each other's images. By default all texts are different.
        images: Number of images.
    """
    texts = len(image_of_text)
    caption_ids: dict[str, int] = {}
    caption_j = (
        np.arange(texts)
        if captions is None
        else np.array([caption_ids.setdefault(caption, len(caption_ids)) for caption in captions])
    )
    has_ic = scipy.sparse.csr_array((np.ones(texts, bool), (image_of_text, caption_j)), shape=(images, texts))
    return has_ic[:, caption_j].astype(bool).tocsr()


def best_ranks(scores_qa: npt.NDArray[np.floating], right_qa: "scipy.sparse.csr_array") -> Ranks:
    """Rank (0 = first) of the best right answer of every query, or the number of answers if none is right."""
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
