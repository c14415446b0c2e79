"""Render the atlas: one self-contained HTML page, its data in a JSON island, its script allowed by hash alone."""

import base64
import functools
import hashlib
import json
import re

import jinja2
from markupsafe import Markup

from mode_ray.atlas.data import AtlasData, ClusterColumns
from mode_ray.atlas.sample import clipped

MAX_DATA_BYTES = 5_000_000
# Chosen far apart in OKLab by farthest-point search at lightness 0.40 to 0.78; groups are told by number too.
# fmt: off
EXPERT_COLORS = (
    "#336ccc", "#73d41d", "#fd4835", "#3b5001", "#f173f9", "#7d0d5b", "#17d0d8", "#b3986a",
    "#b0aff5", "#660eb2", "#903902", "#2e985e", "#a96994", "#1a4d68", "#9863fe", "#fe93a4",
    "#d2207f", "#4e8c9f", "#ab2cb5", "#c7bc1c", "#2427bb", "#1ab0fe", "#fc9f30", "#654884",
    "#8fc990", "#7e7120", "#bd1f37", "#673743", "#cb6c4a", "#8870c7", "#dc8fd5", "#316d5a",
)
# fmt: on
# As in the template; `tojson` leaves no `<` inside.
_DATA_ISLAND = re.compile(r'<script type="application/json" id="data">([^<]*)</script>')
# Captions at either end of a cluster, their characters, and terms: the first that fits is taken.
_DETAIL_STEPS = ((5, 150, 8), (4, 120, 8), (3, 100, 8), (2, 80, 6), (1, 60, 5), (0, 0, 4), (0, 0, 2))


def render_atlas(data: AtlasData) -> str:
    """The page; every text in it is untrusted and escaped.

    Captions are shortened, then left out, until the data take at most `MAX_DATA_BYTES`, as far as that goes.
    """
    shown, captions_each = fit_to_bytes(data, MAX_DATA_BYTES)
    environment = _environment()
    script = environment.get_template("atlas_script.html.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("atlas.html.j2").render(
        data=shown,
        colors=EXPERT_COLORS,
        captions_each=captions_each,
        script=Markup(script),  # noqa: S704 - the package's own
        script_hash=digest,
    )


def read_terms(page: str, n: int) -> list[list[str]] | None:
    """Typical words of every expert in the map of n, from a page that `render_atlas` made.

    Returns:
        A list of words an expert, or None where the page has no map of n, or is none of ours.
    """
    data = read_atlas(page)
    try:
        return None if data is None else next((found["terms"] for found in data["maps"] if found["n"] == n), None)
    except (KeyError, TypeError):
        return None


def read_atlas(page: str) -> AtlasData | None:
    """What a page that `render_atlas` made shows; None where it is none of ours."""
    island = _DATA_ISLAND.search(page)
    if island is None:
        return None
    try:
        data: AtlasData = json.loads(island.group(1))
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def fit_to_bytes(data: AtlasData, max_bytes: int) -> tuple[AtlasData, int]:
    """The data with as many and as long captions as fit.

    Returns:
        The data, and how many captions stand at either end of a cluster at most.
    """
    for captions, characters, terms in _DETAIL_STEPS:
        shortened: AtlasData = {**data, "clusters": _shortened(data["clusters"], captions, characters, terms)}
        if _escaped_bytes(shortened) <= max_bytes:
            break
    return shortened, captions


def _shortened(clusters: ClusterColumns, captions: int, characters: int, terms: int) -> ClusterColumns:
    def cut(texts: list[list[str]]) -> list[list[str]]:
        return [[clipped(text, characters) for text in own[:captions]] for own in texts]

    return {
        **clusters,
        "near": cut(clusters["near"]),
        "far": cut(clusters["far"]),
        "near_distance": [own[:captions] for own in clusters["near_distance"]],
        "far_distance": [own[:captions] for own in clusters["far_distance"]],
        "terms": [own[:terms] for own in clusters["terms"]],
    }


def _escaped_bytes(data: AtlasData) -> int:
    text: str = _environment().from_string("{{ data | tojson }}").render(data=data)
    return len(text.encode())


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mode_ray.atlas", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # `tojson` escapes <, >, & and ' whatever else is set; text of other scripts stays at its own size.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    environment.policies["json.dumps_function"] = json.dumps
    return environment
