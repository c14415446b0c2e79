"""Text files, parquet files, pictures and evaluation sets as users have them, written by the generator of field cases.

The generator is outside the repository; the tests are skipped where it is absent.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions, read_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.evaluate.tasks.samples import read_samples
from mode_ray.evaluate.tasks.task import load_task
from mode_ray.evaluate.tasks.usable_samples import UsableSamples, prepared_image
from mode_ray.index.images import read_images
from mode_ray.models.preprocess import ImageGeometry, ImageInput

GENERATOR = Path(__file__).resolve().parents[3] / "shared" / "field" / "cases_data.py"
Case = dict[str, Any]


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    """The generator of the cases."""
    if not GENERATOR.is_file():
        pytest.skip(f"no generator at {GENERATOR}")
    spec = importlib.util.spec_from_file_location("field_cases", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write(cases: ModuleType, tmp_path: Path) -> Callable[[str], Case]:
    """Writes the input of a case, and returns the case."""

    def written(name: str) -> Case:
        case: Case = cases.CASES[name](tmp_path)
        return case

    return written


def usable_captions(config: CaptionsConfig) -> list[str]:
    captions: list[str] = []
    for work_unit in list_work_units(config):
        table = read_captions(work_unit, config)
        assert (table.refused, table.rows_in) == ({}, count_captions(work_unit, config))
        captions += table.table["caption"].to_pylist()
    return captions


@pytest.mark.parametrize("name", ["string_views", "stray_quotes", "odd_pictures"])
def test_every_caption_is_read(write: Callable[[str], Case], name: str) -> None:
    case = write(name)
    expect = case.pop("expect")
    captions = usable_captions(CaptionsConfig.model_validate(case))
    assert len(captions) == expect
    assert all(len(caption) < 100 for caption in captions)


@pytest.mark.parametrize("name", ["no_header", "tabs_in_csv"])
def test_the_error_says_what_to_set(write: Callable[[str], Case], name: str) -> None:
    case = write(name)
    expect = case.pop("expect")
    with pytest.raises(DataError, match=expect):
        usable_captions(CaptionsConfig.model_validate(case))


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("no_header", {"header": False, "caption_field": 0}, 24),
        ("tabs_in_csv", {"format": "tsv"}, 24),
        ("stray_quotes", {"quoting": "none"}, 2000),
    ],
)
def test_the_setting_reads_it(write: Callable[[str], Case], name: str, settings: Case, count: int) -> None:
    case = write(name)
    del case["expect"]
    assert len(usable_captions(CaptionsConfig.model_validate({**case, **settings}))) == count


def test_odd_pictures(write: Callable[[str], Case], cases: ModuleType) -> None:
    config = CaptionsConfig.model_validate({"paths": write("odd_pictures")["paths"]})
    source = ImageInput(ImageGeometry(size=(224, 224)), 64_000_000)
    found, refused = {}, []
    for work_unit in list_work_units(config):
        for image in read_images(work_unit, config):
            try:
                found[image.key] = source.prepare(image.data or b"", image.key)
            except DataError as error:
                refused.append(str(error))
    ramp, turned, clear = found["ramp16"], found["turned"], found["clear"]
    assert len(set(ramp[112, :, 0].tolist())) > 8, "the grey levels of the middle of the ramp"
    assert abs(turned[112, 112].astype(int) - cases.colour(1)).max() < 9
    assert clear[112, 10].tolist() == [200, 30, 30]
    assert clear[112, -10].tolist() == [255, 255, 255]
    assert [text.split(" is too elongated")[0] for text in refused] == [
        "thin5000: image of 5000 x 1 pixels",
        "thin60000: image of 60000 x 1 pixels",
    ]


def test_benchmark_text_files(write: Callable[[str], Case], cases: ModuleType, tmp_path: Path) -> None:
    case = write("benchmark_text_files")
    file = tmp_path / "task.yaml"
    file.write_text(f"{{name: set, kind: classification, format: {case['format']}, paths: {case['paths']}}}")
    task = load_task(str(file))
    assert task.class_texts() == [[f"a photo of a {noun}."] for noun in cases.NOUNS]
    usable = UsableSamples(task)
    source = ImageInput(ImageGeometry(size=(16, 16)), 10**6)
    used = [usable.take(sample, prepared_image(sample, source.prepare)) for sample in read_samples(task)]
    assert sum(pixels is not None for pixels in used) == case["expect"]
    assert usable.labels().tolist() == [number % len(cases.NOUNS) for number in range(case["expect"])]
