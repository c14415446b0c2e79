"""Every config field is read by the package: a setting that nothing reads does not do what it says."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from field_reads import reads_of

import mode_ray
from mode_ray.config.base import Settings
from mode_ray.config.run import RunConfig
from mode_ray.config.study import StudyConfig

PACKAGE = Path(inspect.getfile(mode_ray)).parent
# They handle fields of any config by name, and so would read all of them.
GENERIC = ("reference.py", "load.py")


def models_below(model: type[Settings]) -> Iterator[type[Settings]]:
    """A config model and all sections below it."""
    yield model
    for field in model.model_fields.values():
        for kind in kinds_in(field.annotation):
            yield from models_below(kind)


def kinds_in(annotation: object) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for part in get_args(annotation):
        yield from kinds_in(part)


MODELS = {model.__name__: model for root in (RunConfig, StudyConfig) for model in models_below(root)}


@pytest.fixture(scope="module")
def reads() -> set[tuple[str, str]]:
    sources = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file.read_text()
        for file in PACKAGE.rglob("*.py")
        if file.name not in GENERIC
    }
    return reads_of(sources, {name: model.__module__ for name, model in MODELS.items()})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_field_is_read(name: str, reads: set[tuple[str, str]]) -> None:
    unread = [field for field in MODELS[name].model_fields if (name, field) not in reads]
    assert unread == [], f"{name}: no module reads {', '.join(unread)}: make use of the fields, or remove them"


CONFIG = """
class Limits(Settings):
    pixels: int = 1
    share: float = 0.5
class Speed(Settings):
    pixels: int = 1
class Config(Settings):
    limits: Limits = Limits()
    speed: Speed = Speed()
    folder: str
    @model_validator(mode="after")
    def _bounds(self):
        assert self.limits.share < 1 and self.speed.pixels
    @property
    def place(self) -> str:
        return self.folder
"""


class TestTheProof:
    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("def f(config: Config): return config.limits.pixels", {("Config", "limits"), ("Limits", "pixels")}),
            ("def f(limits: Limits): return limits.pixels", {("Limits", "pixels")}),
            ("def f(limits): return limits.pixels", set()),  # it may be anything
            ("def f(other: Other): return other.limits.pixels", set()),
            ("def f(config: Config): config.limits", {("Config", "limits")}),
            ("def f(config: Config): return config.place", {("Config", "folder")}),
            ("class Own(Config): ...\ndef f(own: Own): return own.place", {("Own", "folder")}),
            (
                "class Job:\n  def __init__(self, config: Config):\n    self._own = config.speed\n"
                "def f(jobs: Sequence[Job]):\n  for job in jobs:\n    job._own.pixels",
                {("Config", "speed"), ("Speed", "pixels")},
            ),
            (
                "def load() -> Config: ...\nlimits, other = load().limits, 1\nf = lambda: limits.share",
                {("Config", "limits"), ("Limits", "share")},
            ),
            ('def f(config: Config): return "config.limits.pixels"  # config.limits.share', set()),
        ],
    )
    def test_finds_what_a_module_reads_of_a_section(self, code: str, expected: set[tuple[str, str]]) -> None:
        models = {**dict.fromkeys(("Limits", "Speed", "Config"), "config"), "Own": "own"}
        assert {read for read in reads_of({"config": CONFIG, "user": code}, models) if read[1] != "place"} == expected

    def test_a_validator_alone_is_no_reader(self) -> None:
        assert reads_of({"config": CONFIG}, dict.fromkeys(("Limits", "Speed", "Config"), "config")) == set()
