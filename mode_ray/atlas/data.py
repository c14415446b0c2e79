"""Computes the atlas summary from a clustering and a sample of captions, without I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mode_ray.atlas.layout import layout_map
from mode_ray.atlas.sample import CaptionSample
from mode_ray.atlas.summary import (
    CAPTIONS_PER_END,
    COMMON_TERMS,
    HISTOGRAM_BINS,
    NEIGHBOURS,
    QUANTILES,
    SCHEMA_VERSION,
    TERMS_PER_CLUSTER,
    TERMS_PER_EXPERT,
    AtlasSummary,
    ClusterColumns,
    Finding,
    MapData,
)
from mode_ray.atlas.terms import TermCounts
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.fit.sizes import imbalance_factor, max_over_mean

_MIN_ROWS_TO_JUDGE = 10
_REPEATED_BELOW = 0.5
_DIFFUSE_ABOVE = 1.4
_TWIN_SHARE = 0.1
_UNEVEN_ABOVE = 4.0
_TOLERATED_SHARE = 0.05

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AtlasFacts:
    """Origin and limits of a summary.

    Attributes:
        about: Facts to show, by name.
        slack: Slack of the coarse maps: an expert has at most (1 + slack)/n of the captions.
        first_map: The n to show first.
        refused: Captions refused before clustering, by reason.
        versions: Versions of packages.
        count_sample: Count cluster sizes in the sample instead of the fit; set if assignments are priced.
    """

    about: Mapping[str, str]
    slack: float
    first_map: int
    refused: Mapping[str, int]
    versions: Mapping[str, str]
    count_sample: bool = False


def atlas_data(clustering: Clustering, sample: CaptionSample, facts: AtlasFacts) -> AtlasSummary:
    """Compute the summary of a clustering; its clusters may have few sampled captions, or none."""
    m = len(clustering.centers_md)
    sampled_m = np.bincount(sample.fine_b, minlength=m)
    rows_m = sampled_m if facts.count_sample else clustering.mass_m
    share_m = rows_m / max(1, int(rows_m.sum()))
    terms = TermCounts(sample.terms, sampled_m)
    edges = _edges(sample.squared_distance_b)
    clusters = _clusters(clustering, sample, terms, rows_m, edges)
    shown_first = sorted(clustering.coarse, key=lambda n: (n != facts.first_map, -n))
    maps = [_map(clustering, n, share_m, terms, facts.slack) for n in shown_first]
    return AtlasSummary(
        schema_version=SCHEMA_VERSION,
        facts=dict(facts.about),
        findings=_findings(clusters, maps, rows_m),
        maps=maps,
        clusters=clusters,
        edges=_rounded(edges),
        histogram=np.histogram(np.minimum(sample.squared_distance_b, edges[-1]), edges)[0].tolist(),
        quantiles=_quantiles(sample.squared_distance_b),
        total_rows=int(rows_m.sum()),
        max_over_mean=max_over_mean(rows_m),
        imbalance=imbalance_factor(rows_m),
        common_terms=terms.common[:COMMON_TERMS],
        refused=dict(facts.refused),
        fit={
            name: _figure(value) for name, value in clustering.training.items() if not isinstance(value, dict | list)
        },
        versions=dict(facts.versions),
    )


def _map(clustering: Clustering, n: int, share_m: FloatArray, terms: TermCounts, slack: float) -> MapData:
    group_m = clustering.experts_of(n)
    return MapData(
        n=n,
        slack=slack,
        capacity=min(1.0, (1 + slack) / n),
        load=np.bincount(group_m, weights=share_m, minlength=n).round(6).tolist(),
        spread=_rounded(clustering.spread(n)),
        centers=np.bincount(group_m, minlength=n).tolist(),
        terms=terms.top(group_m, n, TERMS_PER_EXPERT),
        expert=group_m.tolist(),
    )


def _clusters(
    clustering: Clustering,
    sample: CaptionSample,
    terms: TermCounts,
    rows_m: npt.NDArray[np.integer],
    edges: FloatArray,
) -> ClusterColumns:
    m = len(clustering.centers_md)
    places_m2, radius_m = layout_map(clustering.centers_md, rows_m / max(1, int(rows_m.sum())))
    order = np.lexsort((sample.squared_distance_b, sample.fine_b))
    starts = np.searchsorted(sample.fine_b[order], np.arange(m + 1))
    members = [order[starts[fine] : starts[fine + 1]] for fine in range(m)]
    distances = [sample.squared_distance_b[own] for own in members]
    ends = _ends(sample, m)
    neighbours_mk, neighbour_distance_m = nearest_neighbours(clustering.centers_md, NEIGHBOURS)
    return ClusterColumns(
        x=places_m2[:, 0].round(5).tolist(),
        y=places_m2[:, 1].round(5).tolist(),
        radius=radius_m.round(5).tolist(),
        rows=rows_m.tolist(),
        mass=clustering.mass_m.tolist(),
        sampled=[len(own) for own in members],
        distinct=[
            round(len(np.unique(sample.text_hash_b[own])) / len(own), 4) if len(own) else None for own in members
        ],
        mean=[round(float(own.mean()), 4) if len(own) else None for own in distances],
        quantiles=[_quantiles(own) for own in distances],
        histogram=[np.histogram(np.minimum(own, edges[-1]), edges)[0].tolist() for own in distances],
        terms=terms.top(np.arange(m), m, TERMS_PER_CLUSTER),
        near=[[caption for caption, _ in near] for near, _ in ends],
        far=[[caption for caption, _ in far] for _, far in ends],
        near_distance=[_rounded([distance for _, distance in near]) for near, _ in ends],
        far_distance=[_rounded([distance for _, distance in far]) for _, far in ends],
        price=_rounded(clustering.prices_m),
        neighbours=neighbours_mk.tolist(),
        neighbour_distance=[None if np.isinf(value) else round(float(value), 4) for value in neighbour_distance_m],
    )


def _ends(sample: CaptionSample, m: int) -> list[tuple[list[tuple[str, float]], list[tuple[str, float]]]]:
    """For every cluster, its captions nearest to the center, nearest first, and its farthest, farthest first."""
    found: list[list[tuple[str, float]]] = [[] for _ in range(m)]
    columns = (sample.ends[name].to_pylist() for name in ("fine", "caption", "squared_distance"))
    for fine, caption, distance in zip(*columns, strict=True):
        found[fine].append((caption, distance))
    halves = []
    for captions in found:
        near = captions[: min(CAPTIONS_PER_END, -(-len(captions) // 2))]
        halves.append((near, captions[len(near) :][::-1][:CAPTIONS_PER_END]))
    return halves


def nearest_neighbours(centers_md: npt.NDArray[np.floating], count: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """The nearest other centers of every center.

    Returns:
        neighbours_mk: [m, k], nearest first; k is the smaller of `count` and m - 1.
        squared_distance_m: float64 [m], to the nearest other center; infinite if there is none.
    """
    centers_md = np.asarray(centers_md, np.float64)
    m, k = len(centers_md), min(count, len(centers_md) - 1)
    neighbours_mk = np.empty((m, k), np.intp)
    squared_distance_m = np.full(m, np.inf)
    norm_m = np.square(centers_md).sum(1)
    for start in range(0, m if k else 0, 1024):
        rows = np.arange(start, min(start + 1024, m))
        squared_bm = np.maximum(norm_m[rows, None] + norm_m - 2 * centers_md[rows] @ centers_md.T, 0.0)
        squared_bm[np.arange(len(rows)), rows] = np.inf
        neighbours_mk[rows] = np.argsort(squared_bm, axis=1, kind="stable")[:, :k]
        squared_distance_m[rows] = squared_bm.min(axis=1)
    return neighbours_mk, squared_distance_m


def _findings(clusters: ClusterColumns, maps: Sequence[MapData], rows_m: npt.NDArray[np.integer]) -> list[Finding]:
    """The most important findings, for the top of the page."""
    ratio = max_over_mean(rows_m)
    sizes = (
        f"The largest fine cluster has {ratio:.1f} times the mean size; "
        f"the imbalance factor is {imbalance_factor(rows_m):.2f} (1 is perfect)."
    )
    uneven = ratio > _UNEVEN_ABOVE
    found = [Finding(good=not uneven, sentence=sizes, clusters=[int(rows_m.argmax())] if uneven else [])]
    for chosen in maps:
        fullest, over = max(chosen["load"]), max(chosen["load"]) / chosen["capacity"]
        held = over <= 1 + 1e-5  # loads are rounded
        limit = f"within its capacity of {_percent(chosen['capacity'])}" if held else f"{over:.2f} times its capacity"
        sentence = f"n = {chosen['n']}: the largest expert has {_percent(fullest)} of the captions, {limit}."
        found.append(Finding(good=held, sentence=sentence, clusters=[]))
    return found + _odd_clusters(clusters, rows_m)


def _odd_clusters(clusters: ClusterColumns, rows_m: npt.NDArray[np.integer]) -> list[Finding]:
    """Clusters that are empty, repetitive, diffuse, or near-duplicates; a few of the last two are normal."""
    m = len(rows_m)
    means = {
        fine: mean
        for fine, mean in enumerate(clusters["mean"])
        if mean is not None and clusters["sampled"][fine] >= _MIN_ROWS_TO_JUDGE
    }
    typical = float(np.median(list(means.values()))) if means else 0.0
    gaps = clusters["neighbour_distance"]
    checks = [
        (
            np.flatnonzero(rows_m == 0).tolist(),
            0.0,
            "No fine cluster is empty",
            "have no caption: they are used for routing, but not for training",
        ),
        (
            [fine for fine in means if (clusters["distinct"][fine] or 0.0) < _REPEATED_BELOW],
            0.0,
            "No fine cluster consists mostly of repeated captions",
            "consist mostly of repeated captions (fewer than half are distinct), which deduplication removes",
        ),
        (
            [fine for fine, mean in means.items() if mean > _DIFFUSE_ABOVE * typical],
            _TOLERATED_SHARE,
            "No fine cluster is much more diffuse than the others",
            f"are diffuse: their mean squared distance exceeds {_DIFFUSE_ABOVE:g} times the typical {typical:.2f}",
        ),
        (
            [fine for fine, gap in enumerate(gaps) if gap is not None and gap < _TWIN_SHARE * typical],
            _TOLERATED_SHARE,
            "No two fine centers nearly coincide",
            f"are near-duplicates: another center is nearer than {_TWIN_SHARE:g} of the typical squared distance. "
            f"Merging two of equal size would raise their mean squared distance by only {_percent(_TWIN_SHARE / 4)}",
        ),
    ]
    return [
        Finding(
            good=len(those) <= tolerated * m,
            sentence=f"{len(those):,} of {m:,} fine clusters {trait}." if those else f"{none}.",
            clusters=those,
        )
        for those, tolerated, none, trait in checks
    ]


def _edges(squared_distance_b: npt.NDArray[np.floating]) -> FloatArray:
    """Bins for all histograms; the last bin includes all larger values, so that outliers do not flatten the others."""
    high = float(np.quantile(squared_distance_b, 0.998)) if len(squared_distance_b) else 1.0
    return np.linspace(0.0, max(high, 1e-6), HISTOGRAM_BINS + 1)


def _quantiles(values: npt.NDArray[np.floating]) -> list[float]:
    return _rounded(np.quantile(values, QUANTILES)) if len(values) else []


def _rounded(values: Sequence[float] | npt.NDArray[np.floating]) -> list[float]:
    rounded: list[float] = np.asarray(values, np.float64).round(4).tolist()
    return rounded


def _figure(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _percent(share: float) -> str:
    return f"{share * 100:.3g}\N{NO-BREAK SPACE}%"
