"""One pass over a task's images for all models; what is left out is counted; what is stored suffices for any rule."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mode_ray.config import EvaluatePlacement
from mode_ray.errors import DataError
from mode_ray.evaluate import similarities
from mode_ray.evaluate.measurements import load_cosines, load_summary
from mode_ray.evaluate.similarities import measure_task
from mode_ray.evaluate.tasks import Task
from mode_ray.expert import Expert
from mode_ray.images import decode_image
from mode_ray.routing import mean_direction
from mode_ray.storage import Location
from mode_ray.train.model import build_clip, save_clip
from mode_ray.train_config import ModelConfig

CLASSES = ("red", "green", "blue")
PIXELS = 24 * 24


class Letters:
    """A caption encoder without a model: the counts of a caption's letters, scaled to unit length."""

    name, dimension = "letters", 26

    def encode(self, captions: list[str]) -> np.ndarray:
        counts = np.array([[text.count(chr(ord("a") + n)) for n in range(26)] for text in captions], np.float32)
        norms = np.linalg.norm(counts, axis=1, keepdims=True)
        unit: np.ndarray = counts / np.where(norms > 0, norms, 1)
        return unit


def png(seed: int, side: int = 24) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Location]:
    """Two untrained models of different seeds."""
    root = tmp_path_factory.mktemp("models")
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (root / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    folders = {name: Location.parse(str(root / name)) for name in ("dense", "n2/00")}
    for seed, folder in enumerate(folders.values()):
        save_clip(folder, build_clip(ModelConfig(architecture=str(root), precision="float32"), seed))
    return folders


@pytest.fixture
def measure(tmp_path: Path, models: dict[str, Location]) -> Callable[..., Location]:
    """Writes rows of (image, text) as a task, measures it, and gives the directory of the result."""

    def run(rows: list[tuple[bytes | None, str | None]], **fields: Any) -> Location:  # noqa: ANN401
        column = "caption" if fields.get("kind") == "retrieval" else "label"
        images = pa.array([image for image, _ in rows], pa.binary())
        texts = pa.array([text for _, text in rows], pa.string())
        pq.write_table(pa.table({"image": images, column: texts}), tmp_path / "task.parquet")
        defaults = {"name": "colours", "kind": "classification", "paths": (str(tmp_path / "task.parquet"),)}
        task = Task.model_validate(defaults | fields)
        directory = Location.parse(str(tmp_path / "measured"))
        measure_task(task, models, Letters(), directory, EvaluatePlacement(batch_size=2), PIXELS)
        return directory

    return run


def test_every_image_is_decoded_once_for_all_models(
    measure: Callable[..., Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []

    def counting(data: bytes, max_pixels: int, place: str) -> Image.Image:
        places.append(place)
        return decode_image(data, max_pixels, place)

    monkeypatch.setattr(similarities, "decode_image", counting)
    measure([(png(n), CLASSES[n % 3]) for n in range(5)], classes=CLASSES)
    assert [place.rsplit(" ", 1)[1] for place in places] == ["0", "1", "2", "3", "4"]


def test_the_stored_cosines_are_those_of_the_models(
    measure: Callable[..., Location], models: dict[str, Location]
) -> None:
    pictures, templates = [png(n) for n in range(5)], ("a {} thing", "the {}")
    directory = measure([(picture, "green") for picture in pictures], classes=CLASSES, templates=templates)
    measured = load_cosines(directory)
    assert set(measured.cosines) == set(models)
    for name, folder in models.items():
        expert = Expert(folder, "cpu")
        texts = [mean_direction(expert.encode_texts([t.format(name) for t in templates])) for name in CLASSES]
        for number, picture in enumerate(pictures):
            image = expert.encode_images(expert.prepare(decode_image(picture, PIXELS, "")).unsqueeze(0))[0]
            np.testing.assert_allclose(measured.cosines[name][number], np.stack(texts) @ image, atol=1e-5)
        assert measured.cosines[name].dtype == np.float32
        assert measured.summary.logit_scales[name] == pytest.approx(expert.logit_scale)


def test_class_names_are_routed_by_the_mean_of_their_templates(measure: Callable[..., Location]) -> None:
    measured = load_cosines(measure([(png(0), "red")], classes=CLASSES, templates=("a {}", "{} x")))
    expected = [mean_direction(Letters().encode([f"a {name}", f"{name} x"])) for name in CLASSES]
    np.testing.assert_allclose(measured.routing_texts_ld, np.stack(expected), atol=1e-6)
    assert measured.summary.texts == ("a red", "a green", "a blue")


def test_labels_are_the_numbers_of_the_classes(measure: Callable[..., Location]) -> None:
    measured = load_cosines(
        measure([(png(n), label) for n, label in enumerate(["blue", "red", "blue"])], classes=CLASSES)
    )
    assert measured.labels.tolist() == [2, 0, 2]


def test_unusable_samples_are_left_out_and_counted(measure: Callable[..., Location]) -> None:
    rows = [
        (png(0), "red"),
        (png(1), None),
        (png(2), ""),
        (png(3), "yellow"),
        (None, "red"),
        (b"no image", "red"),
        (png(4, side=25), "red"),
        (png(5), "blue"),
    ]
    measured = load_cosines(measure(rows, classes=CLASSES))
    summary = measured.summary
    assert summary.skipped == {"no text": 2, "of no class of the task": 1, "no image": 1, "undecodable image": 2}
    assert {reason: place.split("task.parquet: ")[1][:5] for reason, place in summary.examples.items()} == {
        "no text": "row 1",
        "of no class of the task": "row 3",
        "no image": "row 4",
        "undecodable image": "row 5",
    }
    assert (summary.images, measured.labels.tolist()) == (2, [0, 2])
    assert all(cosines.shape == (2, 3) for cosines in measured.cosines.values())


def test_retrieval_has_one_text_an_image(measure: Callable[..., Location]) -> None:
    rows = [(png(0), "a red cat"), (png(1), "a blue dog"), (b"broken", "lost"), (png(2), "a red cat")]
    measured = load_cosines(measure(rows, kind="retrieval"))
    assert measured.summary.texts == ("a red cat", "a blue dog", "a red cat")
    assert measured.labels.tolist() == [0, 1, 2]
    assert measured.summary.skipped == {"undecodable image": 1}
    np.testing.assert_allclose(measured.routing_texts_ld, Letters().encode(list(measured.summary.texts)))
    assert all(cosines.shape == (3, 3) for cosines in measured.cosines.values())


def test_captions_that_the_encoder_does_not_know_are_left_out_of_retrieval(measure: Callable[..., Location]) -> None:
    rows = [(png(0), "red"), (png(1), "123"), (png(2), "blue")]
    measured = load_cosines(measure(rows, kind="retrieval"))
    assert measured.summary.texts == ("red", "blue")
    assert measured.summary.skipped == {"caption without a word that the caption encoder knows": 1}
    assert measured.labels.tolist() == [0, 1]
    assert {cosines_il.shape for cosines_il in measured.cosines.values()} == {(2, 2)}


def test_a_task_without_a_usable_sample_is_an_error(measure: Callable[..., Location]) -> None:
    with pytest.raises(DataError, match=r"task colours: no usable sample .*of no class of the task.*2"):
        measure([(png(0), "x"), (png(1), "y")], classes=CLASSES)


def test_the_summary_comes_last_so_a_task_is_measured_or_not(measure: Callable[..., Location], tmp_path: Path) -> None:
    directory = measure([(png(0), "red")], classes=CLASSES)
    assert load_summary(directory) == load_cosines(directory).summary
    nowhere = Location.parse(str(tmp_path / "nowhere"))
    assert load_summary(nowhere) is None
    with pytest.raises(DataError, match=r"nowhere/task\.json: missing; run `mode-ray evaluate` first"):
        load_cosines(nowhere)


def test_a_missing_model_is_named(tmp_path: Path, models: dict[str, Location]) -> None:
    task = Task(name="t", kind="retrieval", paths=("x.parquet",))
    with_one_missing = {**models, "n2/01": Location.parse(str(tmp_path / "n2/01"))}
    with pytest.raises(DataError, match=r"n2/01/open_clip_config\.json: missing"):
        measure_task(task, with_one_missing, Letters(), Location.parse(str(tmp_path)), EvaluatePlacement(), PIXELS)
