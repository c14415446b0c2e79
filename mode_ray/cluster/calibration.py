"""The temperature of routing, fitted to the caption encoder without a label.

Routing spreads a text over the fine centers by softmax(-d2 / temperature). The right temperature depends on how far
apart the encoder puts texts, which differs by encoder, and on how well near centers agree on the expert. What can be
asked without labels: hide a caption's own fine center, so that the caption lies between clusters as the texts of a new
task do, and predict the expert of the hidden center from the distances to all others. The temperature with the
largest mean log probability of the right expert is taken (leave-one-out likelihood, as in Neighbourhood Components
Analysis, Goldberger et al. 2004):

    max over t of the mean over captions x of log [ sum over s' != s(x), c(s') = c(s(x)) of softmax_s'(-d2(x, s') / t) ]

Without hiding there is nothing to fit: the nearest center decides the expert by definition, and the likelihood would
grow without end as t goes to 0. With it the extremes come out right: where near centers always agree on the expert t
goes to its lower end (one expert answers), and where they say nothing of it, as when centers are dealt at random, to
the upper end (all answer).

The rows are a sample of the clustering's own captions where the cluster stage has them; else the fine centers stand
for captions, each counted by its mass: every clustering holds those.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError

CALIBRATION_KEY = "calibration"
TEMPERATURES = (1e-3, 4.0)
_GRID_POINTS = 25
_DISTANCES_AT_MOST = 1 << 20
_FEWEST_ROWS, _MOST_ROWS = 256, 4096

Basis = Literal["captions", "centers", "nothing"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted temperature and what it rests on.

    Attributes:
        temperature: The temperature; None where nothing could be fitted.
        basis: Rows that it was fitted on: captions of the sample, or the fine centers in their place.
        rows: How many.
        log_loss: Mean of -log p(right expert) at that temperature, in nats.
        share_log_loss: The same for one who always answers with the experts' shares of the rows.
    """

    temperature: float | None
    basis: Basis
    rows: int = 0
    log_loss: float | None = None
    share_log_loss: float | None = None

    @property
    def note(self) -> str:
        """One sentence for reports."""
        if self.temperature is None:
            return (
                "No temperature could be fitted (every expert would need two fine centers, and there must be two "
                "experts): the rule calibrated uses routing.temperature."
            )
        on = {
            "captions": f"{self.rows:,} captions of the clustering's sample",
            "centers": f"the {self.rows:,} fine centers, because the clustering was made without a calibration",
        }[self.basis]
        return (
            f"Temperature {self.temperature:g} of the rule calibrated, fitted without labels on {on}: log loss "
            f"{self.log_loss:.3f} for the expert of a hidden center, {self.share_log_loss:.3f} by the experts' "
            "shares alone."
        )


NOT_FITTED = Calibration(temperature=None, basis="nothing")


def fit_temperature(
    rows_pd: npt.NDArray[np.floating],
    hidden_p: npt.NDArray[np.integer],
    weight_p: npt.NDArray[np.number],
    centers_md: npt.NDArray[np.floating],
    group_m: npt.NDArray[np.integer],
    basis: Basis,
) -> Calibration:
    """Fit the temperature; see the module.

    Args:
        rows_pd: Embeddings of captions, or the centers themselves.
        hidden_p: The fine center of every row, which is hidden from it.
        weight_p: What every row counts.
        centers_md: Fine centers.
        group_m: Expert of every fine center.
        basis: What the rows are.

    Returns:
        The calibration, the temperature rounded to four digits; without one where all centers belong to one expert,
        or no row has another center of its own expert.
    """
    if len(np.unique(group_m)) < 2:
        return NOT_FITTED
    expert_p = group_m[hidden_p]
    usable_p = (np.bincount(group_m)[expert_p] > 1) & (weight_p > 0)
    if not usable_p.any():
        return NOT_FITTED
    rows, hidden, expert = rows_pd[usable_p].astype(np.float64), hidden_p[usable_p], expert_p[usable_p]
    share_p = weight_p[usable_p] / weight_p[usable_p].sum()
    centers = centers_md.astype(np.float64)
    # |x|^2 is the same for all centers of a row, so the softmax does not see it.
    excess_pm = np.square(centers).sum(axis=1) - 2.0 * (rows @ centers.T)
    excess_pm[np.arange(len(rows)), hidden] = np.inf
    excess_pm -= excess_pm.min(axis=1, keepdims=True)
    own_pm = np.where(group_m == expert[:, None], excess_pm, np.inf)

    def log_loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        all_p = logsumexp(-excess_pm / temperature, axis=1)
        own_p = logsumexp(-own_pm / temperature, axis=1)
        return float(share_p @ (all_p - own_p))

    grid = np.linspace(*np.log(TEMPERATURES), _GRID_POINTS)
    losses = [log_loss(point) for point in grid]
    best = int(np.argmin(losses))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID_POINTS - 1)])
    found = minimize_scalar(log_loss, bounds=around, method="bounded", options={"xatol": 1e-3})
    log_temperature = float(found.x) if found.fun < losses[best] else float(grid[best])
    share_c = np.bincount(expert, weights=share_p)
    return Calibration(
        temperature=float(f"{np.exp(log_temperature):.4g}"),
        basis=basis,
        rows=len(rows),
        log_loss=round(log_loss(log_temperature), 4),
        share_log_loss=round(float(-np.log(share_c[expert]) @ share_p), 4),
    )


def fit_on_captions(
    captions_pd: npt.NDArray[np.floating],
    centers_md: npt.NDArray[np.floating],
    group_m: npt.NDArray[np.integer],
) -> Calibration:
    """Fit on captions of the sample, their own centers found here.

    Args:
        captions_pd: Embeddings, as many as `calibration_rows` says.
        centers_md: Fine centers.
        group_m: Expert of every fine center.
    """
    centers, captions = centers_md.astype(np.float64), captions_pd.astype(np.float64)
    nearest_p = (np.square(centers).sum(axis=1) - 2.0 * (captions @ centers.T)).argmin(axis=1)
    return fit_temperature(captions, nearest_p, np.ones(len(captions)), centers_md, group_m, "captions")


def fit_on_centers(
    centers_md: npt.NDArray[np.floating],
    group_m: npt.NDArray[np.integer],
    mass_m: npt.NDArray[np.number] | None = None,
) -> Calibration:
    """Fit on the fine centers in place of captions; of very many of them on evenly spaced ones.

    Args:
        centers_md: Fine centers.
        group_m: Expert of every fine center.
        mass_m: Captions of each; all alike by default.
    """
    chosen_p = evenly_spaced(len(centers_md), calibration_rows(len(centers_md)))
    weight_p = np.ones(len(chosen_p)) if mass_m is None else mass_m[chosen_p]
    return fit_temperature(centers_md[chosen_p], chosen_p, weight_p, centers_md, group_m, "centers")


def calibration_of(clustering: Clustering, n: int) -> Calibration:
    """The calibration of a clustering's map: the stored one, or one fitted on its centers where it has none.

    Raises:
        UsageError: There is no map for n.
        DataError: What is stored is not a calibration.
    """
    group_m = clustering.experts_of(n)
    stored = clustering.training.get(CALIBRATION_KEY)
    if stored is None or (isinstance(stored, Mapping) and str(n) not in stored):
        return fit_on_centers(clustering.centers_md, group_m, clustering.mass_m)
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
    """Calibrations as a clustering's training figures keep them, by n."""
    return {str(n): asdict(calibration) for n, calibration in by_n.items()}


def calibration_rows(m: int) -> int:
    """How many rows a fit over m centers takes: more would cost time and change the temperature little."""
    return int(np.clip(_DISTANCES_AT_MOST // m, _FEWEST_ROWS, _MOST_ROWS))


def evenly_spaced(rows: int, wanted: int) -> npt.NDArray[np.int64]:
    """Ascending distinct positions, at most `wanted`, spread over `rows`."""
    return np.unique(np.linspace(0, rows - 1, min(rows, wanted)).astype(np.int64))
