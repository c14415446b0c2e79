"""Mix the experts' outputs (paper section 3.3): cosines, not logits, are averaged with the routing weights.

score(x, l) = sum over c of p_c cos(f_c(x), g_c(l)). The same number is one inner product of concatenated embeddings
with the weights on the text side. So images are embedded and indexed once, for any task.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported at their first use: the driver does without them

Floats = npt.NDArray[np.floating]
_COSINES_AT_ONCE = 1 << 18  # a block and its product stay in a core's cache


def ensemble_scores(cosines: Sequence[Floats] | Floats, weights_c: Floats) -> Floats:
    """Weighted mean of the experts' cosines, [images, texts], in their own precision.

    Args:
        cosines: Every expert's cosine of every image with every text, [images, texts] each. They are read once, in
            order and a block of rows at a time, so that they can be memory-mapped files.
        weights_c: Routing weights of the task; sum to 1. An expert of weight 0 is not read.
    """
    return _weighted_sum(cosines, np.asarray(weights_c)[:, None])


def per_query_scores(cosines: Sequence[Floats] | Floats, weights_lc: Floats) -> Floats:
    """As `ensemble_scores`, but every text has its own weights (image retrieval)."""
    return _weighted_sum(cosines, np.asarray(weights_lc).T)


def _weighted_sum(cosines: Sequence[Floats] | Floats, weights_cl: Floats) -> Floats:
    scores_il: Floats = np.zeros_like(cosines[0], subok=False)
    images, texts = scores_il.shape
    step = max(1, _COSINES_AT_ONCE // max(1, texts))
    for cosines_il, weights_l in zip(cosines, weights_cl.astype(scores_il.dtype), strict=True):
        if not weights_l.any():
            continue
        for start in range(0, images, step):
            scores_il[start : start + step] += weights_l * cosines_il[start : start + step]
    return scores_il


def concatenated_images(features: Sequence[Floats]) -> Floats:
    """The task-free image side: the experts' unit image embeddings side by side, [images, sum of dimensions]."""
    return np.concatenate(features, axis=1)


def concatenated_texts(features: Sequence[Floats], weights: Floats) -> Floats:
    """The query side: the experts' unit text embeddings side by side, each times its weight.

    Args:
        features: Per expert [texts, dimension].
        weights: [experts] for one task, or [texts, experts] with weights of its own for every text.
    """
    weights_lc = np.broadcast_to(weights, (len(features[0]), len(features)))
    return np.concatenate([weights_lc[:, c, None] * feature for c, feature in enumerate(features)], axis=1)


def probabilities(scores_il: Floats, weights_c: Floats, logit_scales_c: Floats) -> Floats:
    """softmax(s * score) over the texts, with s the weighted mean of the experts' logit scales."""
    # In double precision, so that the probabilities of many texts sum to 1.
    result: Floats = scipy.special.softmax(float(weights_c @ logit_scales_c) * scores_il.astype(np.float64), axis=1)
    return result


def keep_top(weights: Floats, experts: int) -> Floats:
    """Weights with only the `experts` largest kept (the lower id first among equals), scaled to sum to 1.

    Args:
        weights: [experts], or [texts, experts] to prune every text's own weights.
        experts: How many stay.
    """
    return _only_first(weights, np.asarray(experts))


def keep_share(weights: Floats, share: float) -> Floats:
    """Weights with the smallest set of experts kept that covers a share of the weight, scaled to sum to 1.

    Args:
        weights: [experts], or [texts, experts] to prune every text's own weights.
        share: Between 0 and 1.
    """
    covered = np.cumsum(-np.sort(-weights, axis=-1), axis=-1)
    return _only_first(weights, (covered < share - 1e-12).sum(axis=-1) + 1)


def without_experts(weights: Floats, missing: Sequence[int]) -> Floats:
    """Weights without some experts, scaled to sum to 1; uniform if only those experts had weight.

    Args:
        weights: [experts], or [texts, experts].
        missing: Ids of the experts to leave out; not all of them.
    """
    left = np.ones(weights.shape[-1], bool)
    left[list(missing)] = False
    kept = np.where(left, weights, 0.0)
    total = kept.sum(axis=-1, keepdims=True)
    result: Floats = np.where(total > 0.0, kept / np.where(total > 0.0, total, 1.0), left / left.sum())
    return result


def _only_first(weights: Floats, counts: npt.NDArray[np.integer]) -> Floats:
    """Of every row its `counts` largest weights, scaled to sum to 1."""
    order = np.argsort(-weights, axis=-1, kind="stable")
    stays = np.arange(weights.shape[-1]) < counts[..., None]
    pruned = np.zeros_like(weights)
    np.put_along_axis(pruned, order, np.where(stays, np.take_along_axis(weights, order, axis=-1), 0.0), axis=-1)
    result: Floats = pruned / pruned.sum(axis=-1, keepdims=True)
    return result
