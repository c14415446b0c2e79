"""From a task's texts to weights over experts (paper section 3.3), as pure numpy.

L are the task's texts, d2(l, s) is the squared Euclidean distance between text l and fine center s, S_c are
the centers of expert c. The rules:

- `soft`: p(c) = mean over l of the sum over s in S_c of softmax over all s of
  -d2(l, s) / temperature. It is continuous in the number of texts, and useful for a single text.
- `calibrated` (default): `soft` with the temperature that was fitted to the encoder on the clustering's own captions,
  without labels; see mode_ray.cluster.calibration.
- `paper`: A(l, s) = exp(-d2(l, s) / lambda) for the nearest s of each l, else 0; p = softmax over c of the
  sum of A over l and S_c. Fewer than 10 texts: A is multiplied by exp(0.5 - sqrt|L|). More than 200: lambda
  is divided by log|L|.
- `released`: d(l) = plain distance to the nearest center; a = exp(0.5 - sqrt|L|) below 10 texts, else 0;
  k = 5 log10(max(10, |L| - 200)); w(c) = sum of exp(k (a - d(l))) over the l whose nearest center is in S_c;
  p = softmax over c of w(c) / 8. This is how the authors' released scripts weigh; the paper's text differs.
- `uniform`: p(c) = 1 / n.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported at their first use: the driver does without them

from mode_ray.config.evaluate import RoutingConfig, RoutingRule
from mode_ray.errors import DataError, UsageError

_DISTANCES_AT_ONCE = 1 << 22
_NORM_TOLERANCE = 0.01
_SPREADING_RULES: tuple[RoutingRule, ...] = ("calibrated", "soft")

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingWeights:
    """The experts' weights for one task, with the reasons for them.

    Attributes:
        weights_c: p(c | task), float64, sums to 1.
        rule: The routing rule.
        normalised_entropy: Entropy of the weights over log n: 0 = one expert, 1 = uniform (also where n = 1).
        nearest_fine_l: Nearest fine center of every text; of equally near ones, the first.
        nearest_squared_distance_l: Squared distance to it, float64.
        per_text_weights_lc: Every text's own distribution over experts; `weights_c` is their mean. None for rules
            other than `soft` and `calibrated`.
        fine_weight_m: The share of the weight that each fine center gives to its expert, sum 1. None for `uniform`.
        temperature: The temperature that `soft` or `calibrated` used; None for other rules.
    """

    weights_c: Floats
    rule: RoutingRule
    normalised_entropy: float
    nearest_fine_l: Integers
    nearest_squared_distance_l: Floats
    per_text_weights_lc: Floats | None = None
    fine_weight_m: Floats | None = None
    temperature: float | None = None


@dataclass(frozen=True, eq=False)
class ExpertCenters:
    """The fine centers, and the experts that own them.

    Attributes:
        centers_md: Fine centers.
        group_m: The expert of every fine center.
        n: Number of experts, of which the last may own no center. None: the largest of `group_m` + 1.
        fitted_temperature: The clustering's, for the rule `calibrated`. Without it the rule is `soft`.
    """

    centers_md: npt.NDArray[np.floating]
    group_m: npt.NDArray[np.integer]
    n: int | None = None
    fitted_temperature: float | None = None


def routing_weights(
    text_embeddings_ld: npt.NDArray[np.floating],
    centers: ExpertCenters,
    config: RoutingConfig,
    rule: RoutingRule | None = None,
) -> RoutingWeights:
    """Weights over experts for a task described by texts: class names, or all captions of a retrieval set.

    Args:
        text_embeddings_ld: Unit rows, one a text; memory stays bounded for any number of them.
        centers: The fine centers with their experts.
        config: Parameters of the rules.
        rule: Another rule than the config's.

    Raises:
        UsageError: There are no texts.
        DataError: Shapes do not fit, a row is not of unit length, or a number is not finite.
    """
    chosen = rule or config.rule
    centers_md, group_m = centers.centers_md, centers.group_m
    n = _checked_experts(text_embeddings_ld, centers)
    texts = len(text_embeddings_ld)
    per_text_lc, temperature, fine_weight_m = None, None, None
    if chosen in _SPREADING_RULES:
        temperature = _temperature(chosen, config, centers)
        spread = _soft_pass(text_embeddings_ld, centers, n, temperature)
        nearest_l, squared_l, per_text_lc = spread.nearest_l, spread.squared_l, spread.weights_lc
        weights_c, fine_weight_m = per_text_lc.mean(axis=0), spread.fine_weight_m
    else:
        nearest_l, squared_l = _nearest(text_embeddings_ld, centers_md)
        evidence_l = _evidence(squared_l, texts, chosen, config)
        evidence_m = np.bincount(nearest_l, weights=evidence_l, minlength=len(centers_md))
        weights_c = scipy.special.softmax(np.bincount(group_m, weights=evidence_m, minlength=n))
        if evidence_m.any():
            fine_weight_m = evidence_m / evidence_m.sum()
    weights_c = weights_c / weights_c.sum()
    return RoutingWeights(
        weights_c=weights_c,
        rule=chosen,
        normalised_entropy=normalised_entropy(weights_c),
        nearest_fine_l=nearest_l,
        nearest_squared_distance_l=squared_l,
        per_text_weights_lc=per_text_lc,
        fine_weight_m=fine_weight_m,
        temperature=temperature,
    )


def per_query_weights(
    text_embeddings_ld: npt.NDArray[np.floating],
    centers: ExpertCenters,
    config: RoutingConfig,
    rule: RoutingRule | None = None,
) -> Floats:
    """Weights for image retrieval, where every query text is a task of its own.

    Row l equals `routing_weights` of text l alone. Arguments and errors as there.

    Returns:
        weights_lc, float64, every row sums to 1.
    """
    chosen = rule or config.rule
    n = _checked_experts(text_embeddings_ld, centers)
    if chosen in _SPREADING_RULES:
        return _soft_pass(text_embeddings_ld, centers, n, _temperature(chosen, config, centers)).weights_lc
    nearest_l, squared_l = _nearest(text_embeddings_ld, centers.centers_md)
    evidence_lc = np.zeros((len(nearest_l), n))
    evidence_lc[np.arange(len(nearest_l)), centers.group_m[nearest_l]] = _evidence(squared_l, 1, chosen, config)
    return np.asarray(scipy.special.softmax(evidence_lc, axis=1), dtype=np.float64)


def nearest_centers(
    text_embeddings_ld: npt.NDArray[np.floating], centers_md: npt.NDArray[np.floating], count: int
) -> tuple[Integers, Floats]:
    """The nearest fine centers of every text, nearest first; of equally near ones, the first.

    Returns:
        (fine_lk, squared_distance_lk) with k = min(count, m).

    Raises:
        UsageError: There are no texts.
        DataError: Shapes do not fit, a row is not of unit length, or a number is not finite.
    """
    _check_embeddings(text_embeddings_ld, centers_md)
    k = min(count, len(centers_md))
    fine, squared = [], []
    for _, distances in _squared_distances(text_embeddings_ld, centers_md):
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        fine.append(order)
        squared.append(np.take_along_axis(distances, order, axis=1))
    return np.concatenate(fine), np.concatenate(squared)


def normalised_entropy(weights_c: Floats) -> float:
    """Entropy of a distribution over log n: 0 for one expert, 1 for a uniform one; 1 if n = 1."""
    if len(weights_c) == 1:
        return 1.0
    return float(np.clip(scipy.special.entr(weights_c).sum() / math.log(len(weights_c)), 0.0, 1.0))


def mean_direction(embeddings_td: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The embedding of a class: the mean of the unit vectors of its templates, scaled to unit length.

    Raises:
        UsageError: There are no templates.
        DataError: A row is zero or not finite, or the rows cancel out.
    """
    if len(embeddings_td) == 0:
        raise UsageError("a class has no template embeddings: give at least one prompt template")
    rows = embeddings_td.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms)) or np.any(norms == 0.0):
        raise DataError("a template embedding is zero or not finite: it has no direction")
    mean = (rows / norms).mean(axis=0)
    length = np.linalg.norm(mean)
    if length < 1e-12:
        raise DataError("the template embeddings of a class cancel out: their mean has no direction")
    return np.asarray(mean / length, dtype=np.float32)


def _evidence(squared_l: Floats, texts: int, rule: RoutingRule, config: RoutingConfig) -> Floats:
    """What every text adds to its nearest center's expert before the softmax over experts."""
    small = texts < config.small_task_below
    small_term = math.exp(0.5 - math.sqrt(texts)) if small else 0.0
    match rule:
        case "paper":
            lambda_ = config.paper_lambda
            if texts > config.large_task_above:
                lambda_ /= math.log(texts, config.large_task_log_base)
            affinity_l: Floats = np.exp(-squared_l / lambda_)
            return affinity_l * small_term if small else affinity_l
        case "released":
            sharpness = 5.0 * math.log10(max(10, texts - config.large_task_above))
            grown_l: Floats = np.exp(sharpness * (small_term - np.sqrt(squared_l)))
            return grown_l / config.released_softmax_temperature
        case "uniform":
            return np.zeros_like(squared_l)
        case "soft" | "calibrated":
            raise ValueError(f"{rule}: weights all centers, not the nearest alone")
        case _:
            assert_never(rule)


def top_centers(weights: RoutingWeights, count: int) -> list[tuple[int, float]]:
    """The fine centers that gave most of the weight, with their shares, largest first; without those of share 0.

    Among equal ones the lower id comes first.
    """
    if weights.fine_weight_m is None:
        return []
    order = np.argsort(-weights.fine_weight_m, kind="stable")[:count].tolist()
    return [(fine, float(weights.fine_weight_m[fine])) for fine in order if weights.fine_weight_m[fine] > 0.0]


@dataclass(frozen=True, eq=False)
class _Spread:
    """Texts spread over the fine centers: nearest centers, their squared distances, weights by text and by center."""

    nearest_l: Integers
    squared_l: Floats
    weights_lc: Floats
    fine_weight_m: Floats


def _temperature(rule: RoutingRule, config: RoutingConfig, centers: ExpertCenters) -> float:
    fitted = centers.fitted_temperature
    return config.temperature if rule == "soft" or fitted is None else fitted


def _soft_pass(
    text_embeddings_ld: npt.NDArray[np.floating], centers: ExpertCenters, n: int, temperature: float
) -> _Spread:
    texts, centers_md = len(text_embeddings_ld), centers.centers_md
    nearest_l, squared_l = np.empty(texts, np.int64), np.empty(texts)
    weights_lc, fine_weight_m = np.empty((texts, n)), np.zeros(len(centers_md))
    membership_mc = np.eye(n)[centers.group_m]
    for rows, distances in _squared_distances(text_embeddings_ld, centers_md):
        nearest_l[rows] = distances.argmin(axis=1)
        squared_l[rows] = distances.min(axis=1)
        excess = distances - squared_l[rows, None]
        with np.errstate(over="ignore"):
            spread_lm = scipy.special.softmax(-excess / temperature, axis=1)
        weights_lc[rows] = spread_lm @ membership_mc
        fine_weight_m += spread_lm.sum(axis=0)
    weights_lc /= weights_lc.sum(axis=1, keepdims=True)
    return _Spread(nearest_l, squared_l, weights_lc, fine_weight_m / fine_weight_m.sum())


def _nearest(
    text_embeddings_ld: npt.NDArray[np.floating], centers_md: npt.NDArray[np.floating]
) -> tuple[Integers, Floats]:
    nearest, squared = [], []
    for _, distances in _squared_distances(text_embeddings_ld, centers_md):
        nearest.append(distances.argmin(axis=1))
        squared.append(distances.min(axis=1))
    return np.concatenate(nearest), np.concatenate(squared)


def _squared_distances(
    text_embeddings_ld: npt.NDArray[np.floating], centers_md: npt.NDArray[np.floating]
) -> Iterator[tuple[slice, Floats]]:
    """Blocks of texts with their float64 squared distances to all centers: memory does not grow with l."""
    centers = centers_md.astype(np.float64)
    center_norms_m = np.einsum("md,md->m", centers, centers)
    step = max(1, _DISTANCES_AT_ONCE // len(centers))
    for start in range(0, len(text_embeddings_ld), step):
        rows = slice(start, start + step)
        texts = text_embeddings_ld[rows].astype(np.float64)
        text_norms_l = np.einsum("ld,ld->l", texts, texts)
        distances = text_norms_l[:, None] - 2.0 * (texts @ centers.T) + center_norms_m
        yield rows, np.maximum(distances, 0.0)


def _check_embeddings(text_embeddings_ld: npt.NDArray[np.floating], centers_md: npt.NDArray[np.floating]) -> None:
    if len(text_embeddings_ld) == 0:
        raise UsageError("the task has no texts: routing needs at least one class name or query")
    if text_embeddings_ld.ndim != 2 or centers_md.ndim != 2:
        raise DataError(
            f"expected matrices of text embeddings and centers, got shapes {text_embeddings_ld.shape} "
            f"and {centers_md.shape}"
        )
    if text_embeddings_ld.shape[1] != centers_md.shape[1]:
        raise DataError(
            f"the texts have {text_embeddings_ld.shape[1]} dimensions but the fine centers "
            f"{centers_md.shape[1]}: embed the task with the encoder that the clustering was made with"
        )
    if len(centers_md) == 0 or not np.isfinite(centers_md).all():
        raise DataError("the fine centers are empty or not finite: make the clustering again")
    norms_l = np.linalg.norm(text_embeddings_ld.astype(np.float64, copy=False), axis=1)
    wrong = np.flatnonzero(~(np.abs(norms_l - 1.0) <= _NORM_TOLERANCE))
    if len(wrong):
        raise DataError(f"text {wrong[0]} has an embedding of length {norms_l[wrong[0]]:g}: expected unit rows")


def _checked_experts(text_embeddings_ld: npt.NDArray[np.floating], centers: ExpertCenters) -> int:
    """n, after all checks."""
    centers_md, group_m = centers.centers_md, centers.group_m
    _check_embeddings(text_embeddings_ld, centers_md)
    if group_m.shape != (len(centers_md),):
        raise DataError(f"there are {len(centers_md)} fine centers but the coarse map has shape {group_m.shape}")
    low, high = int(group_m.min()), int(group_m.max())
    n = high + 1 if centers.n is None else centers.n
    if low < 0 or high >= n:
        raise DataError(f"the coarse map names experts {low} to {high}, outside 0 to {n - 1}")
    return n
