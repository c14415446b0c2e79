"""Compares newly assigned captions with the sample that their clustering was fitted on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.fit.sizes import imbalance_factor
from mode_ray.cluster.quantiles import training_quantiles
from mode_ray.errors import DataError
from mode_ray.new_data.tally import AssignmentTally, far_distance

CERTAIN_Z = 4.0
_NOTABLE_FAR_RATIO = 2.0
_NOTABLE_GROWTH = 1.5


@dataclass(frozen=True)
class Growth:
    """Sizes of clusters or experts now and in the fitted sample; one entry per cluster or expert.

    Attributes:
        training_rows: Rows of the fitted sample.
        rows: New captions.
        growth: Share of the new captions divided by the share of the fitted sample; None if that share is 0.
        z: Difference of the shares in standard errors, assuming independent captions. It is computed from
            arcsin sqrt(share) (Cohen's h), whose standard error 0.5 sqrt(1/rows + 1/training_rows), with the totals of
            all clusters, does not depend on the share, so that small clusters are not over-reported.
    """

    training_rows: list[int]
    rows: list[int]
    growth: list[float | None]
    z: list[float]

    def certain(self) -> list[int]:
        """Those whose share has changed significantly, the strongest growth first."""
        found = [number for number, z in enumerate(self.z) if abs(z) >= CERTAIN_Z]
        return sorted(found, key=lambda number: (-(self.growth[number] or np.inf), number))


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """A comparison of new captions with the sample that the clustering was fitted on.

    Attributes:
        training_rows: Rows of that sample.
        rows: New captions.
        far_quantile: Quantile of the sample's squared distances above which a caption is far.
        far_squared_distance: The value of that quantile.
        far_rows: Far captions.
        far_share: Share of far captions among the new captions; in the sample it is 1 - far_quantile.
        training_quantiles: Squared distance by quantile, in the sample.
        quantiles: The same quantiles of the new captions.
        training_imbalance_factor: m * sum(n^2) / N^2 of the sample's rows by center; 1 if all are equal.
        imbalance_factor: The same for the new captions.
        clusters: Sizes by fine cluster.
        far_rows_by_cluster: Far captions by fine cluster.
        experts: Sizes by expert, for each n.
        verdict: Conclusions, as sentences.
    """

    training_rows: int
    rows: int
    far_quantile: float
    far_squared_distance: float
    far_rows: int
    far_share: float
    training_quantiles: Mapping[str, float]
    quantiles: Mapping[str, float]
    training_imbalance_factor: float
    imbalance_factor: float
    clusters: Growth
    far_rows_by_cluster: list[int]
    experts: Mapping[str, Growth]
    verdict: list[str]


def growth(training_rows: Iterable[int], rows: Iterable[int]) -> Growth:
    """Compare sizes with those in the fitted sample."""
    before, now = np.array(list(training_rows), np.float64), np.array(list(rows), np.float64)
    before_total, now_total = max(1.0, before.sum()), max(1.0, now.sum())
    share_before, share_now = before / before_total, now / now_total
    error = 0.5 * np.sqrt(1.0 / before_total + 1.0 / now_total)
    z = (np.arcsin(np.sqrt(share_now)) - np.arcsin(np.sqrt(share_before))) / error
    ratio = np.divide(share_now, share_before, out=np.zeros(len(now)), where=share_before > 0.0)
    return Growth(
        training_rows=before.astype(int).tolist(),
        rows=now.astype(int).tolist(),
        growth=[round(r, 4) if b > 0 else None for r, b in zip(ratio.tolist(), before.tolist(), strict=True)],
        z=[round(value, 2) for value in z.tolist()],
    )


def compare(clustering: Clustering, tally: AssignmentTally, far_quantile: float, priced: bool = False) -> DriftReport:
    """Compare assigned captions with the sample that the clustering was fitted on.

    Args:
        clustering: The clustering.
        tally: Tally of all captions, counted with `far_distance(clustering, far_quantile)`.
        far_quantile: See `far_distance`.
        priced: Whether captions were assigned with prices; the fitted sample is counted without prices.

    Raises:
        DataError: No caption was assigned, or the clustering has no quantiles.
    """
    if tally.rows == 0:
        raise DataError("no caption is assigned, so there is nothing to compare with the clustering")
    quantiles = training_quantiles(clustering)
    experts = {
        n: growth(clustering.masses(n).tolist(), np.bincount(group_m, tally.rows_m, n).astype(int).tolist())
        for n, group_m in sorted(clustering.coarse.items())
    }
    report = DriftReport(
        training_rows=int(clustering.mass_m.sum()),
        rows=tally.rows,
        far_quantile=far_quantile,
        far_squared_distance=far_distance(clustering, far_quantile),
        far_rows=tally.far_rows,
        far_share=tally.far_rows / tally.rows,
        training_quantiles={f"{share:g}": value for share, value in quantiles.items()},
        quantiles={f"{share:g}": round(tally.quantile(share), 5) for share in quantiles},
        training_imbalance_factor=imbalance_factor(clustering.mass_m),
        imbalance_factor=imbalance_factor(tally.rows_m),
        clusters=growth(clustering.mass_m.tolist(), tally.rows_m.tolist()),
        far_rows_by_cluster=tally.far_m.tolist(),
        experts={str(n): sizes for n, sizes in experts.items()},
        verdict=[],
    )
    report.verdict.extend(_verdict(report))
    if priced:
        report.verdict.append(
            "Captions were assigned with prices, but the fitted sample is counted by nearest center. This explains "
            "some of the growth."
        )
    return report


def _verdict(report: DriftReport) -> list[str]:
    """Conclusions and recommendations, as sentences."""
    fitted_share = 1.0 - report.far_quantile
    far = (
        f"{report.far_share:.1%} of the new captions are far from every center "
        f"({fitted_share:.1%} of the fitted sample)"
    )
    excess = growth(
        [round(fitted_share * report.training_rows), round(report.far_quantile * report.training_rows)],
        [report.far_rows, report.rows - report.far_rows],
    ).z[0]
    if report.far_share >= _NOTABLE_FAR_RATIO * fitted_share and excess >= CERTAIN_Z:
        sentences = [f"{far}. Consider `mode-ray cluster extend`."]
    else:
        sentences = [f"{far}. The centers still cover the new captions."]
    for n, sizes in report.experts.items():
        changed = [expert for expert in sizes.certain() if _notable(sizes.growth[expert])]
        sentences += [
            f"Expert {expert} of {n} receives {sizes.rows[expert] / report.rows:.1%} of the new captions "
            f"({sizes.training_rows[expert] / max(1, report.training_rows):.1%} of the fitted sample)."
            for expert in changed
        ]
    if report.imbalance_factor >= _NOTABLE_GROWTH * report.training_imbalance_factor:
        sentences.append(
            f"The clusters are less even: imbalance factor {report.imbalance_factor:.2f} "
            f"({report.training_imbalance_factor:.2f} in the fitted sample)."
        )
    return sentences


def _notable(ratio: float | None) -> bool:
    return ratio is None or not 1.0 / _NOTABLE_GROWTH < ratio < _NOTABLE_GROWTH
