"""The temperature of routing, fitted to the caption encoder without labels.

Routing distributes a text over the fine centers by softmax(-d2 / temperature). The right temperature depends on the
distances between the encoder's texts, and on how often near centers belong to the same expert. The fit hides a
caption's own fine center, so that the caption is between clusters as the texts of a new task are, and predicts the
expert of the hidden center from the distances to all others. It chooses the temperature with the largest mean log
probability of that expert (leave-one-out likelihood, as in Neighbourhood Components Analysis, Goldberger et al. 2004):

    max over t of the mean over captions x of
        log [ sum over s' != s(x) with c(s') = c(s(x)) of softmax over all s' != s(x) of -d2(x, s') / t ]

Without hiding, the nearest center determines the expert by definition, and the likelihood would have no maximum for
t > 0. With hiding, t goes to its lower bound if near centers always have the same expert (one expert answers), and to
its upper bound if the experts of centers are random (all answer). The rows are captions of the clustering's sample.
Its centers could not replace them: centers are means without the spread of their captions, and give half the
temperature.

Measured with a static table (wordllama, 256 dimensions) on 23,000 mixed captions, m = 128: 0.038, 0.045 and 0.047 for
n = 2, 4 and 8. As an independent check, the weights were compared with the experts' shares among the 50 nearest
captions of 1,000 held-out ones. They diverge by 0.085, 0.297 and 0.328 nats; with `soft` at 0.1 by 0.139, 0.299 and
0.375; at the best fixed temperature (0.05 to 0.07) by 0.063, 0.226 and 0.264; at 0.3 by 0.34 to 0.87.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported at their first use: the driver does without them

from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError

CALIBRATION_KEY = "calibration"
TEMPERATURES = (1e-3, 4.0)
_GRID_POINTS = 25
_DISTANCES_AT_MOST = 1 << 19
_FEWEST_ROWS, _MOST_ROWS = 256, 4096


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted temperature and the figures of its fit.

    Attributes:
        temperature: The temperature; None if none was fitted.
        rows: Number of captions in the fit.
        log_loss: Mean of -log p(right expert) at that temperature, in nats.
        share_log_loss: The same if the experts' shares of the captions are always the answer.
    """

    temperature: float | None
    rows: int = 0
    log_loss: float = 0.0
    share_log_loss: float = 0.0

    @property
    def note(self) -> str:
        """One sentence for reports."""
        if self.temperature is None:
            return (
                "The clustering has no fitted temperature (an older version made it, or there is one expert, or one "
                "fine center per expert). The rule calibrated therefore uses routing.temperature, as soft does."
            )
        return (
            f"The rule calibrated uses temperature {self.temperature:g}, fitted without labels on {self.rows:,} "
            f"captions of the clustering's sample. Log loss for the expert of a hidden center: {self.log_loss:.3f}, "
            f"compared with {self.share_log_loss:.3f} for the experts' shares."
        )


NOT_FITTED = Calibration(temperature=None)


def fit_temperature(
    captions_pd: npt.NDArray[np.floating],
    centers_md: npt.NDArray[np.floating],
    group_m: npt.NDArray[np.integer],
) -> Calibration:
    """Fit the temperature; see the module.

    Args:
        captions_pd: Embeddings of `calibration_rows` captions.
        centers_md: Fine centers.
        group_m: Expert of every fine center.

    Returns:
        The calibration, with the temperature rounded to four digits; `NOT_FITTED` if all centers belong to one expert,
        or if no caption's center shares its expert with another center.
    """
    if len(np.unique(group_m)) < 2:
        return NOT_FITTED
    captions, centers = captions_pd.astype(np.float64), centers_md.astype(np.float64)
    # |x|^2 is the same for all centers of a caption and cancels in the softmax.
    excess_pm = np.square(centers).sum(axis=1) - 2.0 * (captions @ centers.T)
    hidden_p = excess_pm.argmin(axis=1)
    usable_p = np.bincount(group_m)[group_m[hidden_p]] > 1
    if not usable_p.any():
        return NOT_FITTED
    excess_pm, hidden_p = excess_pm[usable_p], hidden_p[usable_p]
    expert_p = group_m[hidden_p]
    excess_pm[np.arange(len(hidden_p)), hidden_p] = np.inf
    excess_pm -= excess_pm.min(axis=1, keepdims=True)
    own_pm = np.where(group_m == expert_p[:, None], excess_pm, np.inf)

    def log_loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        all_p, own_p = (scipy.special.logsumexp(-excess / temperature, axis=1) for excess in (excess_pm, own_pm))
        return float(np.mean(all_p - own_p))

    grid = np.linspace(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]), _GRID_POINTS)
    losses = [log_loss(point) for point in grid]
    best = int(np.argmin(losses))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID_POINTS - 1)])
    found = scipy.optimize.minimize_scalar(log_loss, bounds=around, method="bounded", options={"xatol": 1e-3})
    log_temperature = float(found.x) if found.fun < losses[best] else float(grid[best])
    share_p = np.bincount(expert_p)[expert_p] / len(expert_p)
    return Calibration(
        temperature=float(f"{np.exp(log_temperature):.4g}"),
        rows=len(expert_p),
        log_loss=round(log_loss(log_temperature), 4),
        share_log_loss=round(float(-np.log(share_p).mean()), 4),
    )


def calibration_of(clustering: Clustering, n: int) -> Calibration:
    """The calibration that a clustering stores for its map of n experts, or `NOT_FITTED`.

    Raises:
        DataError: The stored calibration is damaged.
    """
    stored = clustering.training.get(CALIBRATION_KEY, {})
    if isinstance(stored, Mapping) and str(n) not in stored:
        return NOT_FITTED
    try:
        calibration = Calibration(**stored[str(n)])
        valid = calibration.temperature is None or 0.0 < calibration.temperature < np.inf
    except (TypeError, IndexError):
        valid = False
    if not valid:
        raise DataError(
            f"the clustering's stored calibration for n={n} is damaged: run the cluster stage again, or set "
            "routing.rule=soft"
        )
    return calibration


def stored_form(by_n: Mapping[int, Calibration]) -> dict[str, Any]:
    """Calibrations by n, as a clustering's training figures store them."""
    return {str(n): asdict(calibration) for n, calibration in by_n.items()}


def calibration_rows(m: int) -> int:
    """Number of captions for a fit over m centers; more would cost time and change the temperature little."""
    return int(np.clip(_DISTANCES_AT_MOST // m, _FEWEST_ROWS, _MOST_ROWS))


def evenly_spaced(rows: int, wanted: int) -> npt.NDArray[np.int64]:
    """Ascending distinct positions, at most `wanted`, spread over `rows`."""
    return np.unique(np.linspace(0, rows - 1, min(rows, wanted)).astype(np.int64))
