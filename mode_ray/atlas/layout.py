"""A two-dimensional map of the fine centers: t-SNE of the largest, others near them, without overlapping discs."""

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported at their first use: the driver does without them

Float64Array = npt.NDArray[np.float64]

MAX_LANDMARKS = 1536
DISC_AREA_SHARE = 0.42
_PERPLEXITY_SHARE = 1 / 50
_PERPLEXITY_BOUNDS = (6.0, 20.0)
_BISECTIONS = 40
_ITERATIONS = 350
_EXAGGERATED_ITERATIONS = 100
_EXAGGERATION = 12.0
_SEPARATION_ROUNDS = 120


def layout_map(
    centers_md: npt.NDArray[np.floating], share_m: npt.NDArray[np.floating]
) -> tuple[Float64Array, Float64Array]:
    """Positions and radii of discs whose area is the cluster's share; similar centers tend to be near each other.

    Args:
        centers_md: [m, d].
        share_m: Share of the captions, [m].

    Returns:
        places_m2: float64 [m, 2] in the unit square, the wider extent along x; deterministic.
        radius_m: float64 [m], in the same units.
    """
    landmarks = np.sort(np.argsort(-np.asarray(share_m), kind="stable")[:MAX_LANDMARKS])
    landmarks_kd: Float64Array = np.asarray(centers_md[landmarks], np.float64)
    places_m2 = np.empty((len(centers_md), 2))
    places_m2[landmarks] = tsne(landmarks_kd)
    others = np.setdiff1d(np.arange(len(centers_md)), landmarks)
    if len(others):
        distances, near = scipy.spatial.KDTree(landmarks_kd).query(centers_md[others], k=3)
        weights = 1.0 / (np.asarray(distances) + 1e-9)
        weights /= weights.sum(axis=1, keepdims=True)
        places_m2[others] = np.einsum("ok,okx->ox", weights, places_m2[landmarks][near])
    places_m2 = _principal(places_m2)  # rotated: the longer axis along x
    radius_m = np.sqrt(np.maximum(share_m, 0.05 / len(share_m)) * DISC_AREA_SHARE / np.pi)
    return _within_square(_separate(_within_square(places_m2, radius_m)[0], radius_m), radius_m)


def tsne(points_kd: Float64Array) -> Float64Array:
    """Exact t-SNE initialised by PCA (van der Maaten and Hinton 2008), float64 [k, 2]; deterministic.

    This avoids a dependency on scikit-learn.
    """
    k = len(points_kd)
    start_k2 = _principal(points_kd)
    if k < 4:
        return start_k2
    # About the number of neighbours in a topic: a higher perplexity would merge small topics.
    perplexity = float(np.clip(k * _PERPLEXITY_SHARE, *_PERPLEXITY_BOUNDS))
    affinity_kk = _affinities(points_kd, min(perplexity, (k - 1) / 3)).astype(np.float32)
    places_k2 = (start_k2 / max(float(start_k2.std()), 1e-12) * 1e-4).astype(np.float32)
    step_k2, gain_k2 = np.zeros_like(places_k2), np.ones_like(places_k2)
    rate = max(k / _EXAGGERATION / 4, 50.0)
    for iteration in range(_ITERATIONS):
        early = iteration < _EXAGGERATED_ITERATIONS
        squared_k = np.square(places_k2).sum(1)
        kernel_kk = 1 / (1 + np.maximum(squared_k[:, None] + squared_k - 2 * places_k2 @ places_k2.T, 0))
        np.fill_diagonal(kernel_kk, 0)
        pull_kk = (affinity_kk * (_EXAGGERATION if early else 1.0) - kernel_kk / kernel_kk.sum()) * kernel_kk
        gradient_k2 = 4 * (pull_kk.sum(1)[:, None] * places_k2 - pull_kk @ places_k2)
        gain_k2 = np.maximum(np.where(gradient_k2 * step_k2 > 0, gain_k2 * 0.8, gain_k2 + 0.2), 0.01)
        step_k2 = (0.5 if early else 0.8) * step_k2 - rate * gain_k2 * gradient_k2
        places_k2 = places_k2 + step_k2
    return places_k2.astype(np.float64)


def _affinities(points_kd: Float64Array, perplexity: float) -> Float64Array:
    """Symmetric joint probabilities [k, k] with the given perplexity in every row."""
    squared_kk = scipy.spatial.distance.cdist(points_kd, points_kd, "sqeuclidean")
    squared_kk /= max(float(squared_kk.mean()), 1e-12)
    np.fill_diagonal(squared_kk, np.inf)
    nearest_k1 = squared_kk.min(axis=1, keepdims=True)
    shifted_kk = squared_kk - nearest_k1
    finite_kk = np.where(np.isfinite(shifted_kk), shifted_kk, 0.0)
    low_k, high_k = np.full(len(points_kd), -5.0), np.full(len(points_kd), 15.0)  # log of the precision
    for _ in range(_BISECTIONS):
        middle_k = (low_k + high_k) / 2
        weight_kk = np.exp(-shifted_kk * np.exp(middle_k)[:, None])
        total_k = weight_kk.sum(1)
        entropy_k = np.log(total_k) + np.exp(middle_k) * (weight_kk * finite_kk).sum(1) / total_k
        flat_k = entropy_k > np.log(perplexity)
        low_k, high_k = np.where(flat_k, middle_k, low_k), np.where(flat_k, high_k, middle_k)
    conditional_kk = weight_kk / total_k[:, None]
    joint_kk: Float64Array = (conditional_kk + conditional_kk.T) / (2 * len(points_kd))
    return joint_kk


def _principal(points_kd: Float64Array) -> Float64Array:
    """The first two principal components [k, 2], with fixed signs; zeros if there are fewer."""
    centred_kd = points_kd - points_kd.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred_kd, full_matrices=False)
    axes = min(2, len(scale))
    places_k2 = np.zeros((len(points_kd), 2))
    places_k2[:, :axes] = left[:, :axes] * scale[:axes]
    largest = np.abs(places_k2).argmax(axis=0)
    return places_k2 * np.where(places_k2[largest, [0, 1]] < 0, -1.0, 1.0)


def _separate(places_m2: Float64Array, radius_m: Float64Array) -> Float64Array:
    """Push overlapping discs apart, in small steps."""
    places_m2 = places_m2.copy()
    # Discs at equal positions have no direction to separate in; a golden-angle spiral gives each disc one.
    angle_m = np.arange(len(places_m2)) * 2.399963
    places_m2 += 1e-6 * np.column_stack([np.cos(angle_m), np.sin(angle_m)])
    # Bounded, so that one huge disc does not make pairs with all small ones.
    reach = min(2 * float(radius_m.max()), 8 * float(np.median(radius_m)))
    for _ in range(_SEPARATION_ROUNDS):
        pairs = scipy.spatial.cKDTree(places_m2).query_pairs(reach, output_type="ndarray")
        if not len(pairs):
            break
        first, second = pairs[:, 0], pairs[:, 1]
        apart_p2 = places_m2[second] - places_m2[first]
        distance_p = np.maximum(np.linalg.norm(apart_p2, axis=1), 1e-9)
        overlap_p = radius_m[first] + radius_m[second] - distance_p
        touching = overlap_p > 1e-4
        if not touching.any():
            break
        push_p2 = (0.5 * overlap_p / distance_p)[:, None] * apart_p2
        np.add.at(places_m2, second[touching], 0.6 * push_p2[touching])
        np.subtract.at(places_m2, first[touching], 0.6 * push_p2[touching])
    return places_m2


def _within_square(places_m2: Float64Array, radius_m: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Scale positions and radii so that all discs are in the unit square."""
    low_2 = (places_m2 - radius_m[:, None]).min(axis=0)
    high_2 = (places_m2 + radius_m[:, None]).max(axis=0)
    extent_2 = high_2 - low_2
    scale = 1 / max(float(extent_2.max()), 1e-12)
    return (places_m2 - low_2) * scale, radius_m * scale
