"""The schema, reader and writer of `clusters/summary.json`: figures, terms and captions of every fine cluster.

It is computed once, from the fit and a sample of captions. The atlas page, the evaluation report, the model card and
the service read it.

A cluster has at most `CAPTIONS_PER_END` captions nearest to its center and as many farthest from it, of at most
`MAX_CAPTION_CHARACTERS` characters each, and `TERMS_PER_CLUSTER` terms.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mode_ray.atlas.page_of_before import data_of_page
from mode_ray.errors import DataError
from mode_ray.run_directory import ATLAS_HTML, SUMMARY_FILE
from mode_ray.storage import Location

SCHEMA_VERSION = 1
CAPTIONS_PER_END = 5
MAX_CAPTION_CHARACTERS = 200
TERMS_PER_CLUSTER = 8
TERMS_PER_EXPERT = 14
MAX_TERM_CHARACTERS = 32
COMMON_TERMS = 40
HISTOGRAM_BINS = 24
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEIGHBOURS = 3
MAX_BYTES = 1 << 30
_REMEDY = "write it again with `mode-ray atlas`"

Count = Annotated[int, Field(ge=0)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
Caption = Annotated[str, Field(max_length=MAX_CAPTION_CHARACTERS)]
Captions = Annotated[list[Caption], Field(max_length=CAPTIONS_PER_END)]
Distances = Annotated[list[Figure], Field(max_length=CAPTIONS_PER_END)]
Term = Annotated[str, Field(max_length=MAX_TERM_CHARACTERS)]
Histogram = Annotated[list[Count], Field(max_length=HISTOGRAM_BINS)]
Quantiles = Annotated[list[Figure], Field(max_length=len(QUANTILES))]


class MapData(TypedDict):
    """One coarse map."""

    n: Annotated[int, Field(gt=0)]
    slack: Figure
    capacity: Figure  # largest share of the captions that an expert may have
    load: list[Figure]  # share of the captions, by expert
    spread: list[Figure]  # mean squared distance of its captions to its centroid
    centers: list[Count]
    terms: list[Annotated[list[Term], Field(max_length=TERMS_PER_EXPERT)]]
    expert: list[Count]  # of every fine cluster


class ClusterColumns(TypedDict):
    """The fine clusters; every list has one entry per cluster."""

    x: list[Figure]  # position and radius on the map, in the unit square
    y: list[Figure]
    radius: list[Figure]
    rows: list[Count]  # basis of the shares: the mass, or the sampled captions if assignments are priced
    mass: list[Count]  # captions of the fit by nearest center
    sampled: list[Count]
    distinct: list[Figure | None]  # share of distinct captions among the sampled
    mean: list[Figure | None]  # squared distance to the center
    quantiles: list[Quantiles]
    histogram: list[Histogram]
    terms: list[Annotated[list[Term], Field(max_length=TERMS_PER_CLUSTER)]]
    near: list[Captions]  # captions nearest to the center, nearest first
    far: list[Captions]  # captions farthest from it, farthest first
    near_distance: list[Distances]
    far_distance: list[Distances]
    price: list[Figure]
    neighbours: list[Annotated[list[Count], Field(max_length=NEIGHBOURS)]]
    neighbour_distance: list[Figure | None]  # squared, to the nearest other center


class Finding(TypedDict):
    """One sentence about the clustering, and the clusters that it refers to."""

    good: bool
    sentence: str
    clusters: list[Count]


class AtlasSummary(TypedDict):
    """The contents of a clustering."""

    schema_version: int
    facts: dict[str, str]  # origin of the clustering, to be shown
    findings: list[Finding]
    maps: list[MapData]  # in the order to show
    clusters: ClusterColumns
    edges: Annotated[list[Figure], Field(max_length=HISTOGRAM_BINS + 1)]  # of the histograms
    histogram: Histogram  # over all sampled captions
    quantiles: Quantiles
    total_rows: Count
    max_over_mean: Figure
    imbalance: Figure
    common_terms: Annotated[list[Term], Field(max_length=COMMON_TERMS)]
    refused: dict[str, Count]
    fit: dict[str, str]  # figures of the fit
    versions: dict[str, str]


_SCHEMA = TypeAdapter(AtlasSummary)


def write_summary(clusters: Location, summary: AtlasSummary) -> None:
    """Write `summary.json` to the directory of a clustering."""
    text = json.dumps(summary, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    (clusters / SUMMARY_FILE).write_text(text)


def read_summary(clusters: Location, centers: int) -> AtlasSummary | None:
    """Read the summary of a clustering.

    A run of version 0.1.0 has no `summary.json`, so its atlas page is read instead.

    Args:
        clusters: Directory of the clustering.
        centers: Number of fine centers m of the clustering.

    Returns:
        The summary, or None if no atlas was made.

    Raises:
        DataError: The file is damaged, too large, or belongs to another schema or clustering; names file and field.
    """
    file = clusters / SUMMARY_FILE
    if file.exists():
        return _checked(file, _read_text(file), centers)
    page = clusters / ATLAS_HTML
    if not page.exists():
        return None
    data = data_of_page(_read_text(page))
    if data is None:
        raise DataError(f"{page}: contains no data of an atlas; {_REMEDY}, or delete it")
    return _checked(page, json.dumps(data), centers)


def terms_by_expert(summary: AtlasSummary | None, n: int) -> Sequence[Sequence[str]]:
    """Terms of every expert in the map of n; empty if there is no summary or no such map."""
    maps = () if summary is None else summary["maps"]
    return next((one["terms"] for one in maps if one["n"] == n), [[] for _ in range(n)])


def near_captions(summary: AtlasSummary | None, centers: int) -> Sequence[Sequence[str]]:
    """Captions nearest to each of m centers, nearest first; empty if there is no summary."""
    return [[] for _ in range(centers)] if summary is None else summary["clusters"]["near"]


def terms_by_cluster(summary: AtlasSummary | None, centers: int) -> Sequence[Sequence[str]]:
    """Terms of each of m fine clusters; empty if there is no summary."""
    return [[] for _ in range(centers)] if summary is None else summary["clusters"]["terms"]


def _read_text(file: Location) -> str:
    size = file.size_bytes()
    if size > MAX_BYTES:
        raise DataError(f"{file}: {size:,} bytes exceed the limit of {MAX_BYTES:,}; {_REMEDY}")
    try:
        return file.read_text()
    except UnicodeDecodeError:
        raise DataError(f"{file}: not UTF-8 text; {_REMEDY}") from None


def _checked(file: Location, text: str, centers: int) -> AtlasSummary:
    try:
        summary = _SCHEMA.validate_json(text, strict=True)
    except ValidationError as error:
        raise DataError(f"{file}: {_first_problem(error)}; {_REMEDY}") from None
    problem = _inconsistency(summary, centers)
    if problem is not None:
        raise DataError(f"{file}: {problem}; {_REMEDY}")
    return summary


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(map(str, problem["loc"]))
    return f"{field}: {problem['msg']}" if field else problem["msg"]


def _inconsistency(summary: AtlasSummary, centers: int) -> str | None:
    """The first inconsistency with the schema version, the clustering or other fields, or None."""
    version = summary["schema_version"]
    if version != SCHEMA_VERSION:
        return f"schema_version is {version}, but this version of mode_ray reads {SCHEMA_VERSION}"
    problem = _wrong_length("clusters", summary["clusters"], centers)
    for number, one in enumerate(summary["maps"]):
        n = one["n"]
        by_expert = {"load": one["load"], "spread": one["spread"], "centers": one["centers"], "terms": one["terms"]}
        problem = (
            problem
            or _wrong_length(f"maps.{number}", by_expert, n)
            or _wrong_length(f"maps.{number}", {"expert": one["expert"]}, centers)
        )
        if problem is None and max(one["expert"], default=0) >= n:
            problem = f"maps.{number}.expert: has expert {max(one['expert'])}, but n is {n}"
    return problem


def _wrong_length(section: str, columns: Mapping[str, Any], length: int) -> str | None:
    for name, values in columns.items():
        if len(values) != length:
            return f"{section}.{name}: has {len(values)} entries instead of {length}"
    return None
