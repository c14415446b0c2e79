"""Class names and templates that packages bring along: open_clip's as they are there, clip-benchmark's as files."""

import importlib.util
import json
from pathlib import Path

import pytest
from open_clip import zero_shot_metadata

from mode_ray.evaluate.builtin_texts import builtin_texts

installed = importlib.util.find_spec("clip_benchmark") is not None


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a package laid out as clip-benchmark; running its code is an error."""
    folder = tmp_path / "clip_benchmark" / "datasets"
    folder.mkdir(parents=True)
    (tmp_path / "clip_benchmark" / "__init__.py").write_text("raise RuntimeError('its code must not run')")
    (folder / "en_classnames.json").write_text(json.dumps({"pets": ["cat", "T-shirt"], "cars": ["bus"]}))
    templates = {"pets": ["a {c}", "{c}, a pet"], "cars": {"bus": ["a bus"]}}
    (folder / "en_zeroshot_classification_templates.json").write_text(json.dumps(templates))
    (folder / "jp_classnames.json").write_text(json.dumps({"pets": ["猫", "Tシャツ"]}), encoding="utf-8")
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
    with pytest.raises(ValueError, match="builtin:imagenet1k: no such templates; there are builtin:openai-imagenet, "):
        builtin_texts("templates", "builtin:imagenet1k")


def test_clip_benchmarks_texts_are_read_without_running_its_code(package: Path) -> None:
    assert builtin_texts("classes", "builtin:clip-benchmark/pets") == ("cat", "T-shirt")
    assert builtin_texts("templates", "builtin:clip-benchmark/pets") == ("a {}", "{}, a pet")
    assert builtin_texts("classes", "builtin:clip-benchmark/jp/pets") == ("猫", "Tシャツ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin:clip-benchmark/planes", "no such templates; it has pets, cars"),
        ("builtin:clip-benchmark/", "no such templates; it has pets, cars"),
        ("builtin:clip-benchmark/cars", "of its own for every class"),
        ("builtin:clip-benchmark/jp/pets", "no templates in the language 'jp'"),
        ("builtin:clip-benchmark/../../x/pets", r"no templates in the language '\.\./\.\./x'"),
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


@pytest.mark.skipif(not installed, reason="clip-benchmark is not installed")
def test_the_installed_package_has_its_suite() -> None:
    assert len(builtin_texts("classes", "builtin:clip-benchmark/imagenet1k")) == 1000
    assert len(builtin_texts("templates", "builtin:clip-benchmark/imagenet1k")) == 80
