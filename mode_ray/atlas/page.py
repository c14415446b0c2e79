"""Renders the atlas as one self-contained HTML page with embedded JSON; only its script, by hash, may run."""

import base64
import functools
import hashlib
import json

import jinja2
from markupsafe import Markup

from mode_ray.atlas.sample import clipped
from mode_ray.atlas.summary import CAPTIONS_PER_END, AtlasSummary, ClusterColumns

MAX_DATA_BYTES = 5_000_000
# Chosen by farthest-point search in OKLab at lightness 0.40 to 0.78. The page shows the expert's number too.
# fmt: off
EXPERT_COLORS = (
    "#336ccc", "#73d41d", "#fd4835", "#3b5001", "#f173f9", "#7d0d5b", "#17d0d8", "#b3986a",
    "#b0aff5", "#660eb2", "#903902", "#2e985e", "#a96994", "#1a4d68", "#9863fe", "#fe93a4",
    "#d2207f", "#4e8c9f", "#ab2cb5", "#c7bc1c", "#2427bb", "#1ab0fe", "#fc9f30", "#654884",
    "#8fc990", "#7e7120", "#bd1f37", "#673743", "#cb6c4a", "#8870c7", "#dc8fd5", "#316d5a",
)
# fmt: on
# Captions at each end of a cluster, characters per caption, terms per cluster; the first that fits is used.
_DETAIL_STEPS = ((5, 150, 8), (4, 120, 8), (3, 100, 8), (2, 80, 6), (1, 60, 5), (0, 0, 4), (0, 0, 2))


def render_atlas(summary: AtlasSummary) -> str:
    """Render the page of a summary; all text in it is untrusted and escaped.

    The page shows fewer and shorter captions if its data would exceed `MAX_DATA_BYTES`. The summary keeps all of them.
    """
    shown, captions_each = fit_to_bytes(summary, MAX_DATA_BYTES)
    environment = _environment()
    script = environment.get_template("atlas_script.html.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("atlas.html.j2").render(
        data=shown,
        colors=EXPERT_COLORS,
        captions_each=captions_each,
        captions_kept=CAPTIONS_PER_END,
        script=Markup(script),  # noqa: S704 - a template of this package
        script_hash=digest,
    )


def fit_to_bytes(data: AtlasSummary, max_bytes: int) -> tuple[AtlasSummary, int]:
    """The data with as many and as long captions as fit, and the largest number of captions at each end."""
    for captions, characters, terms in _DETAIL_STEPS:
        shortened: AtlasSummary = {**data, "clusters": _shortened(data["clusters"], captions, characters, terms)}
        text = _environment().from_string("{{ data | tojson }}").render(data=shortened)
        if len(text.encode()) <= max_bytes:
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


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mode_ray.atlas", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # `tojson` always escapes <, >, & and '. Without ensure_ascii, other scripts are not escaped and stay small.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    environment.policies["json.dumps_function"] = json.dumps
    return environment
