"""Class names and templates of the packages open_clip and clip-benchmark."""

import importlib.util
import json
from pathlib import Path

import pytest
from open_clip import zero_shot_metadata

from mode_ray.evaluate.tasks.builtin_texts import builtin_texts

CLASSES = {
    "pets": ["cat", "T-shirt"],
    "flowers": ["rose"],
    "caltech101": ["plane"],
    "caltech101_vtab": ["jet"],
    "clevr_count_all": ["three"],
    "imagenet1k": ["tench", "goldfish", "shark"],
}
installed = importlib.util.find_spec("clip_benchmark") is not None


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a package laid out as clip-benchmark; running its code is an error."""
    folder = tmp_path / "clip_benchmark" / "datasets"
    folder.mkdir(parents=True)
    (tmp_path / "clip_benchmark" / "__init__.py").write_text("raise RuntimeError('its code must not run')")
    (folder / "en_classnames.json").write_text(json.dumps(CLASSES))
    templates = {"pets": ["a {c}", "{c}, a pet"], "cars": {"bus": ["a bus"]}, "imagenet1k": ["a bad photo of {c}"]}
    (folder / "en_zeroshot_classification_templates.json").write_text(json.dumps(templates))
    (folder / "jp_classnames.json").write_text(json.dumps({"pets": ["猫", "Tシャツ"]}), encoding="utf-8")
    (folder / "babel_imagenet.json").write_text(json.dumps({"DE": [[0, 2], ["Schleie", "Hai"]]}))
    (folder / "nllb_dist13b_prompts.json").write_text(json.dumps({"DE": ["ein Foto von {}"]}))
    (folder / "voc2007.py").write_text("import nothing_that_is_there\nobject_categories = ['aeroplane',\n 'bicycle']")
    (folder / "builder.py").write_text(
        "def build():\n    imagenet_r_wnids = {'n3', 'n1'}\n    imagenet_a_wnids = ['n2']\n"
        "all_imagenet_wordnet_ids = ['n1', 'n2', 'n3']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_open_clips_classes_stand_in_the_order_of_their_numbers() -> None:
    assert builtin_texts("classes", "builtin:imagenet1k") == tuple(zero_shot_metadata.IMAGENET_CLASSNAMES)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("builtin:openai-imagenet", zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES),
        ("builtin:simple-imagenet", zero_shot_metadata.SIMPLE_IMAGENET_TEMPLATES),
    ],
)
def test_open_clips_templates_make_the_same_texts(name: str, source: tuple) -> None:  # type: ignore[type-arg]
    templates = builtin_texts("templates", name)
    assert [template.replace("{}", "tench") for template in templates] == [one("tench") for one in source]


def test_classes_are_no_templates() -> None:
    with pytest.raises(ValueError, match="builtin:imagenet1k: unknown templates; there are builtin:openai-imagenet, "):
        builtin_texts("templates", "builtin:imagenet1k")


def test_clip_benchmarks_texts_are_read_without_running_its_code(package: Path) -> None:
    assert builtin_texts("classes", "builtin:clip-benchmark/pets") == ("cat", "T-shirt")
    assert builtin_texts("templates", "builtin:clip-benchmark/pets") == ("a {}", "{}, a pet")
    assert builtin_texts("classes", "builtin:clip-benchmark/jp/pets") == ("猫", "Tシャツ")


@pytest.mark.parametrize(
    ("dataset", "classes"),
    [
        ("vtab/pets", ("cat", "T-shirt")),
        ("clevr_count_all", ("three",)),
        ("vtab/clevr_count_all", ("three",)),
        ("caltech101", ("plane",)),
        ("vtab/caltech101", ("jet",)),
        ("imagenetv2", ("tench", "goldfish", "shark")),
        ("imagenet_sketch", ("tench", "goldfish", "shark")),
        ("imagenet-r", ("tench", "shark")),
        ("imagenet-a", ("goldfish",)),
        ("voc2007_multilabel", ("aeroplane", "bicycle")),
        ("de/babel_imagenet", ("Schleie", "Hai")),
    ],
)
def test_sets_are_called_as_on_its_command_line(package: Path, dataset: str, classes: tuple[str, ...]) -> None:
    assert builtin_texts("classes", f"builtin:clip-benchmark/{dataset}") == classes


@pytest.mark.parametrize(
    ("dataset", "templates"),
    [
        ("vtab/pets", ("a {}", "{}, a pet")),
        ("imagenet-r", ("a bad photo of {}",)),
        ("vtab/resisc45", ("a bad photo of {}",)),
        ("de/babel_imagenet", ("ein Foto von {}",)),
    ],
)
def test_a_set_without_templates_has_those_of_imagenet(
    package: Path, dataset: str, templates: tuple[str, ...]
) -> None:
    assert builtin_texts("templates", f"builtin:clip-benchmark/{dataset}") == templates


@pytest.mark.parametrize(
    ("dataset", "source"),
    [
        ("food101", "torchvision or the data"),
        ("objectnet", "torchvision or the data"),
        ("vtab/cifar100", "TensorFlow Datasets"),
        ("resisc45", "TensorFlow Datasets"),
        ("dsprites_label_orientation", "TensorFlow Datasets"),
        ("vtab/flowers", r"TensorFlow Datasets \(its own table has names for flowers\)"),
        ("tfds/pets", "TensorFlow Datasets"),
    ],
)
def test_a_set_that_the_package_holds_no_names_of_is_told_with_what_to_do(
    package: Path, dataset: str, source: str
) -> None:
    message = f"{dataset} and takes them from {source}.*: write them in the task's classes, .* its classnames.txt"
    with pytest.raises(ValueError, match=message):
        builtin_texts("classes", f"builtin:clip-benchmark/{dataset}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin:clip-benchmark/planes", "does not have these templates; it has pets, cars, imagenet1k"),
        ("builtin:clip-benchmark/", "does not have these templates; it has pets, cars, imagenet1k"),
        ("builtin:clip-benchmark/cars", "has different templates for every class"),
        ("builtin:clip-benchmark/jp/pets", "no templates in the language 'jp'"),
        ("builtin:clip-benchmark/../../x/pets", r"no templates in the language '\.\.'"),
        ("builtin:clip-benchmark/it/babel_imagenet", "babel_imagenet has no templates in the language 'it'"),
        (
            "builtin:clip-benchmark/wds/vtab/pets",
            "a wds/ set has its own templates: write format: clip-benchmark",
        ),
    ],
)
def test_what_it_does_not_have_is_said(package: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        builtin_texts("templates", name)
    assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.skipif(installed, reason="clip-benchmark is installed")
def test_without_the_package_the_command_that_installs_it_is_named() -> None:
    with pytest.raises(ValueError, match=r"clip-benchmark/pets: .* not installed: pip install clip-benchmark"):
        builtin_texts("classes", "builtin:clip-benchmark/pets")


@pytest.mark.skipif(not installed, reason="clip-benchmark is not installed (it takes a large Java package along)")
@pytest.mark.parametrize(
    ("dataset", "classes", "templates"),
    [
        ("imagenet1k", 1000, 80),
        ("imagenet_sketch", 1000, 80),
        ("imagenet-a", 200, 80),
        ("imagenet-r", 200, 80),
        ("imagenet-o", 200, 80),
        ("voc2007", 20, 1),
        ("gtsrb", 43, 3),
        ("vtab/caltech101", 102, 34),
        ("vtab/kitti_closest_vehicle_distance", 4, 1),
        ("vtab/pcam", 2, 2),
        ("jp/imagenet-r", 200, 37),
        ("de/babel_imagenet", 738, 80),
        ("vtab/cifar100", None, 18),
        ("fgvc_aircraft", None, 2),
        ("vtab/dsprites_label_orientation", None, 4),
    ],
)
def test_the_installed_package_has_its_suite(dataset: str, classes: int | None, templates: int) -> None:
    name = f"builtin:clip-benchmark/{dataset}"
    assert len(builtin_texts("templates", name)) == templates
    if classes is None:
        with pytest.raises(ValueError, match="has no class names of"):
            builtin_texts("classes", name)
    else:
        assert len(builtin_texts("classes", name)) == classes
