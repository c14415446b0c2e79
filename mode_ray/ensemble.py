"""Mix the experts' outputs (paper section 3.3): cosines, not logits, are averaged with the routing weights.

score(x, l) = sum over c of p_c cos(f_c(x), g_c(l)). The same number is one inner product of concatenated embeddings,
with the
weights on the text side: images can be embedded and indexed once, whatever the task.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

Floats = npt.NDArray[np.floating]


def ensemble_scores(cosines_cil: Floats, weights_c: Floats) -> Floats:
    """Weighted mean of the experts' cosines, [images, texts].

    Args:
        cosines_cil: Every expert's cosine of every image with every text.
        weights_c: Routing weights of the task; sum to 1.
    """
    scores: Floats = np.tensordot(weights_c, cosines_cil, axes=1)
    return scores


def per_query_scores(cosines_cil: Floats, weights_lc: Floats) -> Floats:
    """As `ensemble_scores`, with weights of its own for every text (image retrieval)."""
    scores: Floats = np.einsum("lc,cil->il", weights_lc, cosines_cil)
    return scores


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
    result: Floats = softmax(float(weights_c @ logit_scales_c) * scores_il, axis=1)
    return result


def keep_top(weights_c: Floats, experts: int) -> Floats:
    """Weights with only the `experts` largest kept (the lower id first among equals), scaled to sum to 1."""
    kept = np.argsort(-weights_c, kind="stable")[:experts]
    return _only(weights_c, kept)


def keep_share(weights_c: Floats, share: float) -> Floats:
    """Weights with the smallest set of experts kept that covers a share of the weight, scaled to sum to 1."""
    order = np.argsort(-weights_c, kind="stable")
    covered = np.cumsum(weights_c[order])
    count = int(np.searchsorted(covered, share - 1e-12)) + 1
    return _only(weights_c, order[:count])


def _only(weights_c: Floats, kept: npt.NDArray[np.integer]) -> Floats:
    pruned = np.zeros_like(weights_c)
    pruned[kept] = weights_c[kept]
    result: Floats = pruned / pruned.sum()
    return result
