"""One pass over the images for all models, counts of samples left out, and files that suffice for any rule."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mode_ray.config.evaluate import EvaluatePlacement
from mode_ray.config.train import ModelConfig
from mode_ray.errors import DataError
from mode_ray.evaluate.measure.known_images import KnownImages
from mode_ray.evaluate.measure.measurements import load_cosines, load_summary
from mode_ray.evaluate.measure.options import MeasureOptions
from mode_ray.evaluate.measure.similarities import measure_task, zero_shot_classifier
from mode_ray.evaluate.tasks.task import Task
from mode_ray.models.clip import build_clip, load_clip, save_clip
from mode_ray.models.encode import Expert
from mode_ray.models.together import load_experts
from mode_ray.pairs.images import decode_image
from mode_ray.routing.weights import mean_direction
from mode_ray.run_directory import cosine_file
from mode_ray.storage import Location

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


@pytest.fixture
def measure(tmp_path: Path, models: dict[str, Location]) -> Callable[..., Location]:
    """Writes rows of (image, text) as a task, measures it, and returns the directory of the result."""

    def run(rows: list[tuple[bytes | None, str | list[str] | None]], **fields: Any) -> Location:  # noqa: ANN401
        column = "caption" if fields.get("kind") == "retrieval" else "label"
        images = pa.array([image for image, _ in rows], pa.binary())
        texts = pa.array([text for _, text in rows])
        pq.write_table(pa.table({"image": images, column: texts}), tmp_path / "task.parquet")
        defaults = {"name": "colours", "kind": "classification", "paths": (str(tmp_path / "task.parquet"),)}
        task = Task.model_validate(defaults | fields)
        directory = Location.parse(str(tmp_path / "measured"))
        measure_task(
            task,
            KnownImages(load_experts(models)),
            Letters(),
            directory,
            MeasureOptions(EvaluatePlacement(batch_size=2, max_image_pixels=PIXELS)),
        )
        return directory

    return run


def test_every_image_is_decoded_once_for_eight_experts(
    tmp_path: Path, models: dict[str, Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def counting(source: Any, *arguments: Any, **options: Any) -> Image.Image:  # noqa: ANN401
        opened.append(source.getvalue())
        return open_image(source, *arguments, **options)

    open_image = Image.open
    pictures = [png(number) for number in range(5)]
    pq.write_table(pa.table({"image": pictures, "label": [CLASSES[n % 3] for n in range(5)]}), tmp_path / "t.parquet")
    task = Task(name="t", kind="classification", paths=(str(tmp_path / "t.parquet"),), classes=CLASSES)
    experts = {f"n8/{expert:02d}": models["dense" if expert % 2 else "n2/00"] for expert in range(8)}
    monkeypatch.setattr(Image, "open", counting)
    target = Location.parse(str(tmp_path / "measured"))
    measure_task(
        task,
        KnownImages(load_experts(experts)),
        Letters(),
        target,
        MeasureOptions(EvaluatePlacement(batch_size=2, max_image_pixels=PIXELS)),
    )
    assert opened == pictures
    assert len(load_cosines(target).cosines) == 8


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
    assert summary.skipped == {"no text": 2, "not a class of the task": 1, "no image": 1, "undecodable image": 2}
    assert {reason: place.split("task.parquet: ")[1][:5] for reason, place in summary.examples.items()} == {
        "no text": "row 1",
        "not a class of the task": "row 3",
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
    assert measured.summary.skipped == {"caption without a word known to the caption encoder": 1}
    assert measured.labels.tolist() == [0, 1]
    assert {cosines_il.shape for cosines_il in measured.cosines.values()} == {(2, 2)}


def test_a_task_without_a_usable_sample_is_an_error(measure: Callable[..., Location]) -> None:
    with pytest.raises(DataError, match=r"task colours: no usable sample .*not a class of the task.*2"):
        measure([(png(0), "x"), (png(1), "y")], classes=CLASSES)


def test_the_summary_comes_last_so_a_task_is_measured_or_not(measure: Callable[..., Location], tmp_path: Path) -> None:
    directory = measure([(png(0), "red")], classes=CLASSES)
    assert load_summary(directory) == load_cosines(directory).summary
    nowhere = Location.parse(str(tmp_path / "nowhere"))
    assert load_summary(nowhere) is None
    with pytest.raises(DataError, match=r"nowhere/task\.json: missing; run `mode-ray evaluate` first"):
        load_cosines(nowhere)


def test_stored_cosines_are_mapped_and_not_read_whole(measure: Callable[..., Location]) -> None:
    directory = measure([(png(0), "red")], classes=CLASSES)
    cosines_il = load_cosines(directory).cosines["dense"]
    assert isinstance(cosines_il, np.memmap)
    np.testing.assert_array_equal(cosines_il, np.load(cosine_file(directory, "dense").path))


def test_a_missing_model_is_named(tmp_path: Path, models: dict[str, Location]) -> None:
    with_one_missing = {**models, "n2/01": Location.parse(str(tmp_path / "n2/01"))}
    with pytest.raises(DataError, match=r"n2/01/open_clip_config\.json: missing"):
        load_experts(with_one_missing)


def test_classifiers_are_those_that_open_clip_builds(models: dict[str, Location]) -> None:
    names = ["tench", "T-shirt", "caf\u00e9", "猫", "a very long name " * 10]
    templates = ["a photo of a {}.", "{}", "art of the {}"]
    for folder in models.values():
        clip, expert = load_clip(folder), Expert(folder, "cpu")
        expected_dl = open_clip.build_zero_shot_classifier(clip.module.eval(), clip.tokenizer, names, templates)
        found_ld = zero_shot_classifier([[t.format(name) for t in templates] for name in names], expert.encode_texts)
        np.testing.assert_allclose(found_ld, expected_dl.T.numpy(), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found_ld, axis=1), 1.0, atol=1e-6)


def test_an_image_may_have_several_captions(measure: Callable[..., Location]) -> None:
    rows = [(png(0), ["a red cat", "tom", " "]), (png(1), [""]), (png(2), ["a blue dog"])]
    measured = load_cosines(measure(rows, kind="retrieval"))
    assert measured.summary.texts == ("a red cat", "tom", "a blue dog")
    assert measured.labels.tolist() == [0, 0, 1]
    assert measured.summary.images == 2
    assert measured.summary.skipped == {"empty caption": 1, "no text": 1}
    assert {cosines_il.shape for cosines_il in measured.cosines.values()} == {(2, 3)}


def test_images_whose_captions_are_all_unknown_are_left_out(measure: Callable[..., Location]) -> None:
    rows = [(png(0), ["1", "2"]), (png(1), ["red", "3"]), (png(2), ["blue"])]
    found = load_cosines(measure(rows, kind="retrieval"))
    assert (found.summary.texts, found.labels.tolist(), found.summary.images) == (("red", "blue"), [0, 1], 2)
    alone = load_cosines(measure(rows[1:], kind="retrieval"))
    for name, cosines_il in found.cosines.items():
        np.testing.assert_allclose(cosines_il, alone.cosines[name], atol=1e-6)


def test_an_image_may_have_several_classes_or_none(measure: Callable[..., Location]) -> None:
    rows = [(png(0), ["red", "blue"]), (png(1), []), (png(2), ["green"]), (png(3), None)]
    measured = load_cosines(measure(rows, kind="multilabel", classes=CLASSES))
    assert measured.labels.tolist() == [[True, False, True], [False, False, False], [False, True, False]]
    assert measured.summary.skipped == {"no text": 1}


@pytest.mark.parametrize(
    ("labels", "fields", "message"),
    [
        ([["red", "pink"]], {"kind": "multilabel"}, r"row 0: label: 'pink' is not one of the classes of task colours"),
        (["0", "3"], {"labels": "index"}, r"row 1: label: label '3' is outside 0 to 2: task colours has 3 classes"),
        (["-1"], {"labels": "index"}, r"row 0: label: label '-1' is outside 0 to 2"),
        (["red"], {"labels": "index"}, r"row 0: label: label 'red' is not a class number, .* labels: index"),
        ([[str(3)]], {"kind": "multilabel", "labels": "index"}, r"label '3' is outside 0 to 2"),
        (["red"], {"classes": ("red", "123")}, r"task colours: classes: the caption encoder letters .* of '123'"),
        (["red"], {"classes": ("red", "blue"), "metric": "roc_auc"}, r"metric: roc_auc needs images of both classes"),
    ],
)
def test_what_cannot_be_measured_is_said_with_file_and_field(
    measure: Callable[..., Location], labels: list[Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        measure([(png(n), label) for n, label in enumerate(labels)], **{"classes": CLASSES, **fields})
    assert "\n" not in str(caught.value)


def test_labels_without_images_are_counted(measure: Callable[..., Location]) -> None:
    with pytest.raises(DataError, match=r"task colours: no usable sample \({'no image': 2}\)"):
        measure([(None, "red"), (None, "blue")], classes=CLASSES)


def test_labels_are_the_same_however_their_letters_are_composed(measure: Callable[..., Location]) -> None:
    classes = ("caf\u00e9", "the")
    measured = load_cosines(measure([(png(0), "cafe\u0301"), (png(1), "the")], classes=classes))
    assert measured.labels.tolist() == [0, 1]


def test_names_of_any_language_make_finite_cosines(measure: Callable[..., Location]) -> None:
    names = ("猫", "собака", "🐧", "x" * 500)
    measured = load_cosines(measure([(png(0), "猫")], classes=names, templates=("a photo of {}",)))
    assert all(np.isfinite(cosines_il).all() for cosines_il in measured.cosines.values())


def test_classes_of_one_name_have_the_same_column(measure: Callable[..., Location]) -> None:
    measured = load_cosines(measure([(png(0), "1")], classes=("red", "red", "blue"), labels="index"))
    for cosines_il in measured.cosines.values():
        np.testing.assert_array_equal(cosines_il[:, 0], cosines_il[:, 1])


def test_a_model_with_broken_weights_is_named(tmp_path: Path) -> None:
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = build_clip(ModelConfig(architecture=str(tmp_path), precision="float32"), 0)
    clip.module.visual.proj.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    folder = Location.parse(str(tmp_path / "broken"))
    save_clip(folder, clip)
    pq.write_table(pa.table({"image": [png(0)], "label": ["red"]}), tmp_path / "task.parquet")
    task = Task(name="t", kind="classification", paths=(str(tmp_path / "task.parquet"),), classes=CLASSES)
    with pytest.raises(DataError, match=r"/broken: its embeddings contain a value that is not finite"):
        measure_task(
            task,
            KnownImages(load_experts({"n2/00": folder})),
            Letters(),
            folder,
            MeasureOptions(EvaluatePlacement(max_image_pixels=PIXELS)),
        )


class TestLinearProbe:
    @pytest.fixture
    def rows(self) -> list[tuple[bytes, str]]:
        """Plain pictures, whose class is their colour."""
        pictures = []
        for number in range(24):
            shade, colour = 150 + 4 * number, number % 3
            buffer = io.BytesIO()
            pixel = tuple(shade if channel == colour else 20 for channel in range(3))
            Image.new("RGB", (20, 20), pixel).save(buffer, "PNG")
            pictures.append((buffer.getvalue(), CLASSES[colour]))
        return pictures

    def test_models_learn_from_the_training_split_alone_and_together(
        self, measure: Callable[..., Location], tmp_path: Path, rows: list[tuple[bytes, str]]
    ) -> None:
        train = [*rows[:18], (b"broken", "red")]
        images, labels = zip(*train, strict=True)
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "train.parquet")
        fields = {"linear_probe": True, "train_paths": (str(tmp_path / "train.parquet"),)}
        summary = load_summary(measure(rows[18:], classes=CLASSES, **fields))
        assert summary is not None
        assert set(summary.linear_probe) == {"dense", "n2/00"}
        assert all(metrics["top1"] > 0.8 for metrics in summary.linear_probe.values())
        assert summary.skipped == {"undecodable image (training split)": 1}

    def test_a_training_split_of_one_class_is_named(
        self, measure: Callable[..., Location], tmp_path: Path, rows: list[tuple[bytes, str]]
    ) -> None:
        images = [picture for picture, label in rows if label == "red"]
        pq.write_table(pa.table({"image": images, "label": ["red"] * len(images)}), tmp_path / "train.parquet")
        fields = {"linear_probe": True, "train_paths": (str(tmp_path / "train.parquet"),)}
        with pytest.raises(DataError, match=r"task colours: train_paths: .* two classes; there are 1"):
            measure(rows, classes=CLASSES, **fields)
