"""Renders a drift report as tables and sentences."""

from rich.console import Group
from rich.text import Text

from mode_ray.new_data.compare import DriftReport, Growth
from mode_ray.util.tables import WideTable

_SHOWN_AT_EACH_END = 5


def drift_view(report: DriftReport) -> Group:
    """Distances and balance, the experts of every n, the clusters that changed most, and the conclusions."""
    parts: list[WideTable | Text] = [_overview(report)]
    for n, sizes in report.experts.items():
        parts.append(_sizes(f"{n} experts", "expert", sizes, range(len(sizes.rows))))
    certain = report.clusters.certain()
    if certain:
        both_ends = [*certain[:_SHOWN_AT_EACH_END], *certain[-_SHOWN_AT_EACH_END:]]
        most = certain if len(certain) <= len(both_ends) else both_ends
        title = f"{len(most)} of {len(certain)} fine clusters whose share has changed significantly"
        parts.append(_sizes(title, "cluster", report.clusters, most))
    return Group(*parts, *(Text(sentence) for sentence in report.verdict))


def _overview(report: DriftReport) -> WideTable:
    table = WideTable("drift", "", "fitted sample", "new captions")
    table.add_row("captions", f"{report.training_rows:,}", f"{report.rows:,}")
    table.add_row(
        f"far (squared distance above {report.far_squared_distance:.4f})",
        f"{1.0 - report.far_quantile:.1%}",
        f"{report.far_share:.1%}",
    )
    for share, value in report.quantiles.items():
        table.add_row(f"squared distance, quantile {share}", f"{report.training_quantiles[share]:.4f}", f"{value:.4f}")
    table.add_row(
        "imbalance factor of the clusters", f"{report.training_imbalance_factor:.3f}", f"{report.imbalance_factor:.3f}"
    )
    return table


def _sizes(title: str, kind: str, sizes: Growth, numbers: range | list[int]) -> WideTable:
    table = WideTable(title, kind, "fitted sample", "new captions", "share", "growth", "z")
    total = max(1, sum(sizes.rows))
    for number in numbers:
        growth = sizes.growth[number]
        table.add_row(
            str(number),
            f"{sizes.training_rows[number]:,}",
            f"{sizes.rows[number]:,}",
            f"{sizes.rows[number] / total:.2%}",
            "new" if growth is None else f"{growth:.2f}",
            f"{sizes.z[number]:+.1f}",
        )
    return table
