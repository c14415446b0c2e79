"""Class names and prompt templates of the package clip-benchmark, found in the same way as by its `build_dataset`.

Sets have the names of its command line: `pets`, `imagenet-r`, `vtab/caltech101`. None of its code runs: its tables are
JSON, and its lists in Python files are parsed.
"""

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, Literal

PACKAGE = "clip-benchmark"
Texts = Literal["classes", "templates"]

_TABLES = {"classes": "classnames", "templates": "zeroshot_classification_templates"}
_LANGUAGE = re.compile(r"[a-z-]+")
_COLLECTIONS = ("vtab", "tfds", "wds")
_IMAGENET, _BABEL = "imagenet1k", "babel_imagenet"
_IMAGENET_IDS = "all_imagenet_wordnet_ids"
_IMAGENET_SUBSETS = {f"imagenet-{letter}": f"imagenet_{letter}_wnids" for letter in "aor"}
"""The list in the builder of the package with the ImageNet classes of a set, by set."""
_CLASS_KEYS = {
    "vtab/caltech101": "caltech101_vtab",
    **dict.fromkeys(("imagenet1k-unverified", "imagenet-w", "imagenetv2", "imagenet_sketch"), _IMAGENET),
}
"""The key of the class names, by set, if it is not the name of the set."""
_VOC = ("voc2007", "voc2007_multilabel")
_NAMED_BY_TORCHVISION = (
    *("cifar10", "cifar100", "food101", "sun397", "cars", "fgvc_aircraft", "dtd", "stl10", "renderedsst2"),
    "objectnet",
)
_NAMED_BY_TFDS = ("vtab/flowers", "cub", "inaturalist", "resisc45")
_NAMED_BY_TFDS_IN_PARTS = re.compile(r"(dsprites|smallnorb)_label_[a-z_]+")


def clip_benchmark_texts(texts: Texts, name: str, dataset: str) -> tuple[str, ...]:
    """Class names in the order of their numbers, or templates with {} for the name.

    Args:
        texts: Which of the two.
        name: The name that the user wrote, for messages.
        dataset: A set, or LANGUAGE/SET; the default language is English.

    Raises:
        ValueError: The package is not installed, or does not have them; the message says what to do.
    """
    first, _, rest = dataset.partition("/")
    language, dataset = (first, rest) if rest and first not in _COLLECTIONS else ("en", dataset)
    folder = _data_folder(name)
    if dataset.startswith("wds/"):
        raise ValueError(f"{name}: a wds/ set has its own {texts}: write format: clip-benchmark and its root")
    if dataset == _BABEL:
        found = _of_babel(texts, name, folder, language)
    elif texts == "classes":
        found = _classes(name, folder, language, dataset)
    else:
        found = _templates(name, folder, language, dataset)
    if not isinstance(found, list):
        raise ValueError(f"{name}: has different {texts} for every class, which a task does not support")
    return tuple(str(one).replace("{c}", "{}") for one in found)


def _classes(name: str, folder: Path, language: str, dataset: str) -> Any:  # noqa: ANN401 - as in the JSON file
    table = _table("classes", name, folder, language)
    short = _short(dataset)
    if _named_elsewhere(dataset):
        source = "torchvision or the data" if dataset in _NAMED_BY_TORCHVISION else "TensorFlow Datasets"
        hint = f" (its own table has names for {short})" if short in table else ""
        raise ValueError(
            f"{name}: {PACKAGE} has no class names of {dataset} and takes them from {source}{hint}: write them in "
            f"the task's classes, in the order of their numbers, or use a WebDataset set with its classnames.txt"
        )
    if dataset in _VOC:
        return _literal(name, folder / "voc2007.py", "object_categories")
    key = _IMAGENET if dataset in _IMAGENET_SUBSETS else _CLASS_KEYS.get(dataset, short)
    if key not in table:
        raise ValueError(_unknown("classes", name, [*table, *_CLASS_KEYS, *_IMAGENET_SUBSETS, *_VOC]))
    if dataset in _IMAGENET_SUBSETS:
        builder = folder / "builder.py"
        members = _literal(name, builder, _IMAGENET_SUBSETS[dataset])
        numbers = [number for number, one in enumerate(_literal(name, builder, _IMAGENET_IDS)) if one in members]
        return [table[key][number] for number in numbers]
    return table[key]


def _templates(name: str, folder: Path, language: str, dataset: str) -> Any:  # noqa: ANN401 - as in the JSON file
    """The templates of a set. For its sets without templates, the package uses those of ImageNet."""
    table, short = _table("templates", name, folder, language), _short(dataset)
    if short in table:
        return table[short]
    named = {*_CLASS_KEYS, *_IMAGENET_SUBSETS, *_VOC, *_table("classes", name, folder, language)}
    if (short in named or dataset in named or _named_elsewhere(dataset)) and _IMAGENET in table:
        return table[_IMAGENET]
    raise ValueError(_unknown("templates", name, list(table)))


def _named_elsewhere(dataset: str) -> bool:
    short = _short(dataset)
    named = {dataset, short} & {*_NAMED_BY_TORCHVISION, *_NAMED_BY_TFDS}
    return bool(named or _NAMED_BY_TFDS_IN_PARTS.fullmatch(short) or dataset.startswith("tfds/"))


def _of_babel(texts: Texts, name: str, folder: Path, language: str) -> Any:  # noqa: ANN401 - as in the JSON file
    """Babel-ImageNet has some of the ImageNet classes in each language, with new numbers."""
    file = folder / ("babel_imagenet.json" if texts == "classes" else "nllb_dist13b_prompts.json")
    table = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = table.get(language.upper())
    if found is None:
        raise ValueError(f"{name}: {_BABEL} has no {texts} in the language {language!r}; write LANGUAGE/{_BABEL}")
    return found[1] if texts == "classes" else found


def _short(dataset: str) -> str:
    collection, _, rest = dataset.partition("/")
    return rest if collection in _COLLECTIONS else dataset


def _table(texts: Texts, name: str, folder: Path, language: str) -> dict[str, Any]:
    file = folder / f"{language}_{_TABLES[texts]}.json"
    if not _LANGUAGE.fullmatch(language) or not file.is_file():
        raise ValueError(f"{name}: the installed {PACKAGE} has no {texts} in the language {language!r}")
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return table


def _literal(name: str, file: Path, variable: str) -> Any:  # noqa: ANN401 - as in the source
    """The literal that a Python file assigns to a variable."""
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [variable]:
            return ast.literal_eval(node.value)
    raise ValueError(
        f"{name}: {file}: the installed {PACKAGE} has no list {variable} in it: write the classes in the task"
    )


def _unknown(texts: Texts, name: str, known: list[str]) -> str:
    return f"{name}: the installed {PACKAGE} does not have these {texts}; it has {', '.join(known)}"


def _data_folder(name: str) -> Path:
    spec = importlib.util.find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{name}: the package {PACKAGE} is not installed: pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "datasets"
