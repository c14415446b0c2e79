"""Class names and prompt templates of installed packages, by name: open_clip's, and those of clip-benchmark.

`builtin:NAME` is one of open_clip. `builtin:clip-benchmark/DATASET` is one of the optional package clip-benchmark, in
English; `builtin:clip-benchmark/LANGUAGE/DATASET` in another of its languages. Its tables are read as files: none of
its code runs.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

PREFIX = "builtin:"
_CLIP_BENCHMARK = "clip-benchmark"
# By name, the name in open_clip.zero_shot_metadata.
_OPEN_CLIP = {
    "classes": {"imagenet1k": "IMAGENET_CLASSNAMES"},
    "templates": {
        "openai-imagenet": "OPENAI_IMAGENET_TEMPLATES",
        "simple-imagenet": "SIMPLE_IMAGENET_TEMPLATES",
    },
}
_TABLES = {"classes": "classnames", "templates": "zeroshot_classification_templates"}
_CODE_POINTS_OF_LANGUAGES = frozenset("abcdefghijklmnopqrstuvwxyz-")

Texts = Literal["classes", "templates"]


def builtin_texts(texts: Texts, name: str) -> tuple[str, ...]:
    """Class names in the order of their numbers, or templates with {} for the name.

    Args:
        texts: Which of the two.
        name: With `builtin:` before it.

    Raises:
        ValueError: There is none of this name, or the package that has it is not installed; says what to do.
    """
    given = name.removeprefix(PREFIX)
    source, _, dataset = given.partition("/")
    if source == _CLIP_BENCHMARK:
        return _of_clip_benchmark(texts, name, dataset)
    known = _OPEN_CLIP[texts]
    if given not in known:
        raise ValueError(
            f"{name}: no such {texts}; there are {', '.join(PREFIX + one for one in known)} and, with that package "
            f"installed, {PREFIX}{_CLIP_BENCHMARK}/DATASET"
        )
    # Imported here: it takes torch along, which a driver without such a task has no use for.
    from open_clip import zero_shot_metadata

    found = getattr(zero_shot_metadata, known[given])
    return tuple(one("{}") if callable(one) else str(one) for one in found)


def _of_clip_benchmark(texts: Texts, name: str, dataset: str) -> tuple[str, ...]:
    language, _, rest = dataset.rpartition("/")
    language = language or "en"
    folder = _data_folder(name)
    file = folder / f"{language}_{_TABLES[texts]}.json"
    if not _CODE_POINTS_OF_LANGUAGES.issuperset(language) or not file.is_file():
        raise ValueError(f"{name}: the installed {_CLIP_BENCHMARK} has no {texts} in the language {language!r}")
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if rest not in table:
        raise ValueError(f"{name}: the installed {_CLIP_BENCHMARK} has no such {texts}; it has {', '.join(table)}")
    found = table[rest]
    if not isinstance(found, list):
        raise ValueError(f"{name}: has {texts} of its own for every class, which a task cannot take")
    return tuple(str(one).replace("{c}", "{}") for one in found)


def _data_folder(name: str) -> Path:
    spec = importlib.util.find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{name}: the package {_CLIP_BENCHMARK} is not installed: pip install {_CLIP_BENCHMARK}")
    return Path(spec.submodule_search_locations[0]) / "datasets"
