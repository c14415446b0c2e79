"""Model cards: Markdown with the front matter that the Hugging Face hub reads."""

import functools
import re
from typing import Literal

import jinja2

from mode_ray.cluster.calibration import calibration_of
from mode_ray.config.captions import EncoderConfig
from mode_ray.embed.pooling import pooling_of
from mode_ray.errors import UsageError
from mode_ray.export.facts import ExpertFacts, RunFacts
from mode_ray.models.shared_weights import shared_weights
from mode_ray.run_directory import CLUSTERING_FOLDER, TRUNK_FOLDER, expert_folder
from mode_ray.util.packages import PREFIX, resolve_folder

CARD_FILE = "README.md"
_SHOWN_PATHS = 5
_SHOWN_TERMS = 10
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")

CardKind = Literal["expert", "average", "ensemble", "heads"]


def is_license(text: str) -> bool:
    """Whether a text can stand in the front matter as a licence id, such as `apache-2.0`."""
    return _LICENSE.fullmatch(text) is not None


def render_card(
    facts: RunFacts,
    kind: CardKind,
    license_id: str | None,
    expert: ExpertFacts | None = None,
    *,
    uniform: bool = False,
) -> str:
    """The card of one exported folder.

    Everything that comes from data (paths, words of captions, names of tasks) stands in code spans: it cannot become
    markup.

    Args:
        facts: Of the run.
        kind: One `expert`, the `average` of all, the `ensemble` of all with its clustering, or the same as
            one trunk and `heads`.
        license_id: Licence of the weights, or None to leave it to whoever publishes them.
        expert: The expert, for a card of one.
        uniform: Whether an average took all experts alike rather than by their pairs.
    """
    n, routing = len(facts.experts), facts.config.routing
    fitted = calibration_of(facts.clustering, n).temperature if routing.rule == "calibrated" else None
    template = _environment().get_template("model_card.md.j2")
    return template.render(
        facts=facts,
        config=facts.config,
        kind="ensemble" if kind == "heads" else kind,
        heads=kind == "heads",
        shared=shared_weights([one.folder for one in facts.experts]),
        # Of a folder the name alone: the card goes to others.
        architecture=facts.config.train.model.architecture.rstrip("/").rsplit("/", 1)[-1],
        license=license_id,
        expert=expert,
        uniform=uniform,
        n=n,
        card_rule="calibrated" if routing.rule == "calibrated" else "soft",
        temperature=fitted or routing.temperature,
        m=len(facts.clustering.centers_md),
        paths=facts.config.captions.paths[:_SHOWN_PATHS],
        more_paths=max(0, len(facts.config.captions.paths) - _SHOWN_PATHS),
        shown_terms=_SHOWN_TERMS,
        clustering=CLUSTERING_FOLDER,
        # The script without mode_ray loads whole models.
        **({"pooled": None} if kind == "heads" else _encoder_fields(facts.config.encoder)),
    )


def _encoder_fields(encoder: EncoderConfig) -> dict[str, str | None]:
    """How the card's script loads the caption encoder; `pooled` is None if it cannot without mode_ray."""
    if encoder.kind != "huggingface":
        return {"pooled": None}
    try:
        pooled = pooling_of(encoder, resolve_folder(encoder.model, "encoder.model"))
    except UsageError:  # the encoder's package or folder is not on this machine: an export does not need it
        return {"pooled": None}
    package, _, folder = encoder.model.removeprefix(PREFIX).partition("/")
    is_package = encoder.model.startswith(PREFIX)
    return {
        "pooled": pooled,
        "encoder_package": package if is_package else None,
        "encoder_path": folder if is_package else encoder.model,
    }


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mode_ray.export", "."),
        autoescape=False,  # noqa: S701 - Markdown; data stand in code spans
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = _code
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.1%}"  # noqa: RUF001
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.globals["expert_folder"] = expert_folder
    environment.globals["trunk_folder"] = TRUNK_FOLDER
    return environment


def _code(text: object) -> str:
    """A code span: one line, and nothing in it that ends it or a table's cell."""
    plain = " ".join(str(text).split()).replace("`", "'").replace("|", "/")
    return f"`{plain or ' '}`"
