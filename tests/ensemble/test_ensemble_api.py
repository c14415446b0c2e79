"""What `mode_ray.load` returns: classification, embeddings and routing, against a plain open_clip loop."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_of_before import COLOURS, TEMPLATES, HeldOut

import mode_ray
from mode_ray.config.evaluate import RoutingRule
from mode_ray.ensemble.ensemble import Ensemble
from mode_ray.ensemble.images import ImageInput
from mode_ray.errors import DataError, UsageError

Embed = Callable[..., tuple[np.ndarray, np.ndarray]]
PROMPTS = [template.format(colour) for colour in COLOURS for template in TEMPLATES]


def unit(rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return result


class TestClassification:
    @pytest.mark.parametrize("rule", ["calibrated", "soft", "paper", "released", "uniform"])
    def test_scores_are_the_weighted_cosines_of_plain_open_clip(
        self, ensemble: Ensemble, plain_open_clip: Embed, held_out: HeldOut, rule: RoutingRule
    ) -> None:
        found = ensemble.classify(held_out.images, COLOURS, TEMPLATES, rule=rule)
        expected = np.zeros((len(held_out.images), len(COLOURS)))
        for expert, weight in enumerate(found.weights):
            images, texts = plain_open_clip(expert, held_out.images, PROMPTS)
            classes = unit(texts.reshape(len(COLOURS), len(TEMPLATES), -1).mean(axis=1))
            expected += weight * images @ classes.T
        np.testing.assert_allclose(found.scores, expected, atol=1e-6)
        assert found.labels == [COLOURS[column] for column in expected.argmax(axis=1)]
        assert found.scores.dtype == np.float32
        np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0, atol=1e-12)
        assert found.weights.sum() == pytest.approx(1.0)

    def test_the_scores_are_those_of_the_runs_own_evaluation(
        self, ensemble: Ensemble, run: Path, held_out: HeldOut
    ) -> None:
        found = ensemble.classify(held_out.images, COLOURS, TEMPLATES)
        cosines = [np.load(run / f"evaluation/tasks/colours/cosines/n2_{expert:02d}.npy") for expert in (0, 1)]
        np.testing.assert_allclose(found.scores, np.tensordot(found.weights, cosines, 1), atol=1e-4)

    def test_to_list_is_what_hugging_face_pipelines_return(self, ensemble: Ensemble, held_out: HeldOut) -> None:
        found = ensemble.classify(held_out.images[:3], COLOURS)
        for row, label in zip(found.to_list(), found.labels, strict=True):
            assert [sorted(entry) for entry in row] == [["label", "score"]] * len(COLOURS)
            assert row[0]["label"] == label
            assert [entry["score"] for entry in row] == sorted((entry["score"] for entry in row), reverse=True)

    def test_one_image_is_a_list_of_one(self, ensemble: Ensemble, held_out: HeldOut) -> None:
        found = ensemble.classify(held_out.images[0], COLOURS)
        assert len(found.labels) == len(found.scores) == len(found.to_list()) == 1

    def test_no_images_give_empty_arrays(self, ensemble: Ensemble) -> None:
        found = ensemble.classify([], COLOURS)
        assert (found.labels, found.to_list()) == ([], [])
        assert found.scores.shape == found.probabilities.shape == (0, len(COLOURS))

    def test_a_generator_is_read_a_batch_at_a_time(self, ensemble: Ensemble, held_out: HeldOut) -> None:
        read: list[int] = []

        def images() -> Iterator[Image.Image]:
            for number in range(150):
                read.append(number)
                yield held_out.images[number % 40] if number < 140 else "no such file"  # type: ignore[misc]

        with pytest.raises(DataError, match="no such file"):
            ensemble.classify(images(), COLOURS)
        assert len(read) == 141
        many = ensemble.classify((held_out.images[number % 40] for number in range(130)), COLOURS)
        np.testing.assert_allclose(many.scores[80:120], many.scores[:40], atol=1e-6)

    def test_every_kind_of_image_gives_the_same_scores(
        self, ensemble: Ensemble, held_out: HeldOut, tmp_path: Path
    ) -> None:
        image = held_out.images[0].convert("RGB")
        file = tmp_path / "image.png"
        image.save(file)
        rgba, pixels = image.convert("RGBA"), np.asarray(image)
        kinds: list[ImageInput] = [image, rgba, pixels, np.asarray(rgba)]
        kinds += [file, str(file), f"file://{file}", file.read_bytes()]
        scores = ensemble.classify(kinds, COLOURS).scores
        np.testing.assert_allclose(scores, np.tile(scores[:1], (len(kinds), 1)), atol=1e-6)
        np.testing.assert_allclose(ensemble.classify(np.stack([pixels] * 3), COLOURS).scores, scores[:3], atol=1e-6)
        assert ensemble.classify(pixels[:, :, 0], COLOURS).scores.shape == (1, 8)

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            ([np.zeros((4, 4, 3), np.float32)], r"^image 0: expected a uint8 array .* got float32\[4, 4, 3\]$"),
            (np.zeros((2, 3, 5, 5), np.uint8), r"^image 0: .* got uint8\[3, 5, 5\]$"),
            ([torch.zeros(3, 4, 4)], r"^image 0: .* got Tensor: call tensor\.permute\(1, 2, 0\)\.numpy\(\)"),
            (torch.zeros(2, 3, 4, 4), r"^expected an image or several images, got Tensor: call tensor\.permute"),
            (7, "^expected an image or several images, got int$"),
            ([None], "^image 0: expected a PIL image, .* got NoneType$"),
        ],
    )
    def test_what_is_no_image_is_refused_in_one_sentence(
        self, ensemble: Ensemble, images: object, message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            ensemble.classify(images, COLOURS)  # type: ignore[arg-type]

    def test_damaged_and_absent_files_are_named(self, ensemble: Ensemble, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"not a picture")
        with pytest.raises(DataError, match=r"broken\.png: not an image of a known format"):
            ensemble.classify(tmp_path / "broken.png", COLOURS)
        with pytest.raises(DataError, match=r"absent\.png: no such image file"):
            ensemble.classify(tmp_path / "absent.png", COLOURS)
        with pytest.raises(DataError, match=r"cannot be read \(.*directory"):
            ensemble.classify(tmp_path, COLOURS)


class TestTasks:
    def test_a_task_is_routed_once_and_used_many_times(self, ensemble: Ensemble, held_out: HeldOut) -> None:
        task = ensemble.task(COLOURS, TEMPLATES, rule="released")
        found = ensemble.classify(held_out.images, task)
        assert found.task is task
        np.testing.assert_array_equal(
            found.scores, ensemble.classify(held_out.images, COLOURS, TEMPLATES, rule="released").scores
        )
        np.testing.assert_array_equal(ensemble.route(COLOURS, TEMPLATES, rule="released").weights, task.weights)
        with pytest.raises(UsageError, match="a task has its own templates and rule"):
            ensemble.classify(held_out.images, task, TEMPLATES)

    def test_it_states_why(self, ensemble: Ensemble) -> None:
        # An encoder that splits into bytes knows every text but the empty one.
        task = ensemble.task(["red apple", "?"], [lambda label: label.strip("?")], rule="released")
        assert ([near.label for near in task.nearest], task.unknown) == (["red apple"], ("?",))
        [reason, *_] = task.why()
        assert (reason["fine"], reason["expert"]) == (task.nearest[0].fine, task.nearest[0].expert)
        assert reason["share"] == pytest.approx(1.0)
        assert any("red" in caption for caption in reason["captions"])
        assert 0.0 < task.entropy < 1.0
        assert task.weights.argmax() == reason["expert"]
        assert repr(task).startswith("Task(2 labels, rule=released, weights=[")

    def test_a_function_may_be_the_template(self, ensemble: Ensemble) -> None:
        by_function = ensemble.task(COLOURS, [lambda label: f"a picture of a {label}", "{c}"])
        assert by_function.class_texts == ensemble.task(COLOURS, TEMPLATES).class_texts

    def test_top_uses_the_experts_of_largest_weight_and_loads_no_others(
        self, run: Path, ensemble: Ensemble, plain_open_clip: Embed, held_out: HeldOut
    ) -> None:
        fresh = mode_ray.load(run, device="cpu")
        task = fresh.task(["red"], rule="released", top=1)
        best = int(ensemble.task(["red"], rule="released").weights.argmax())
        assert task.weights.tolist() == [float(expert == best) for expert in (0, 1)]
        images, texts = plain_open_clip(best, held_out.images, ["red"])
        np.testing.assert_allclose(fresh.classify(held_out.images, task).scores, images @ texts.T, atol=1e-6)
        assert list(fresh._loaded) == [best]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([],), "^a task needs at least one label and one template$"),
            (("red",), r"^labels and templates are lists of texts: write \[text\] for a single one$"),
            ((["red", " "],), "^label 1 is empty or not a text: ' '$"),
            ((["red"], ["a picture"]), r"^template 'a picture': write \{\} where the label belongs"),
            ((["red"], ["{0.__class__}"]), r"^template '\{0.__class__\}': write \{\}"),
        ],
    )
    def test_a_wrong_task_is_refused(
        self, ensemble: Ensemble, arguments: tuple[Sequence[str], ...], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            ensemble.task(*arguments)

    def test_so_are_wrong_options(self, ensemble: Ensemble) -> None:
        with pytest.raises(UsageError, match=r"^top=0: use at least one expert$"):
            ensemble.task(["red"], top=0)
        with pytest.raises(UsageError, match=r"^rule='best': use one of calibrated, soft, paper, released, uniform$"):
            ensemble.task(["red"], rule="best")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="the caption encoder knows no word of any label or text"):
            ensemble.task(["red"], [lambda _: ""])


class TestEmbeddings:
    def test_the_inner_product_is_the_ensembles_score(self, ensemble: Ensemble, held_out: HeldOut) -> None:
        task = ensemble.task(COLOURS, rule="released")
        images, texts = ensemble.encode_image(held_out.images), ensemble.encode_text(COLOURS, task)
        assert images.shape == (40, 32)
        np.testing.assert_allclose(images @ texts.T, ensemble.classify(held_out.images, task).scores, atol=1e-6)

    def test_without_a_task_every_text_is_one(self, ensemble: Ensemble) -> None:
        weights = ensemble.weights_of_each(COLOURS)
        for text, row, expected in zip(COLOURS, ensemble.encode_text(COLOURS), weights, strict=True):
            np.testing.assert_allclose(ensemble.task([text]).weights, expected, atol=1e-9)
            np.testing.assert_allclose(np.linalg.norm(row.reshape(2, -1), axis=1), expected, atol=1e-6)

    def test_an_expert_encodes_as_plain_open_clip(
        self, ensemble: Ensemble, plain_open_clip: Embed, held_out: HeldOut
    ) -> None:
        for number, expert in ensemble.experts.items():
            images, texts = plain_open_clip(number, held_out.images, COLOURS)
            np.testing.assert_allclose(expert.encode_image(held_out.images), images, atol=1e-6)
            np.testing.assert_allclose(expert.encode_text(COLOURS), texts, atol=1e-6)
            np.testing.assert_allclose(expert.encode_text("red"), texts[:1], atol=1e-6)
            assert expert.encode_image([]).shape == expert.encode_text([]).shape == (0, 16)

    def test_nothing_gives_empty_arrays_and_what_is_no_text_is_named(self, ensemble: Ensemble) -> None:
        assert ensemble.encode_image([]).shape == ensemble.encode_text([]).shape == (0, 32)
        with pytest.raises(UsageError, match=r"^encode_text: text 1 is of type int, not a text: 7$"):
            ensemble.encode_text(["red", 7])  # type: ignore[list-item]


class TestOptions:
    def test_an_expert_can_be_left_out(self, run: Path, plain_open_clip: Embed, held_out: HeldOut) -> None:
        one = mode_ray.load(run, device="cpu", leave_out=[0])
        assert repr(one) == f"Ensemble({run}, n=2, leave_out=[0])"
        found = one.classify(held_out.images, ["red", "green"])
        images, texts = plain_open_clip(1, held_out.images, ["red", "green"])
        np.testing.assert_allclose(found.scores, images @ texts.T, atol=1e-6)
        assert found.weights.tolist() == [0.0, 1.0]
        assert list(one.experts) == [1]
        np.testing.assert_allclose(
            one.encode_image(held_out.images) @ one.encode_text(["red", "green"]).T, found.scores, atol=1e-6
        )

    def test_bfloat16_is_near_float32_and_returns_float32(
        self, run: Path, ensemble: Ensemble, held_out: HeldOut
    ) -> None:
        short = mode_ray.load(run, device="cpu", dtype="bfloat16")
        found = short.classify(held_out.images, COLOURS)
        exact = ensemble.classify(held_out.images, COLOURS)
        assert found.scores.dtype == np.float32
        difference = np.abs(found.scores - exact.scores).max()
        assert 0.0 < difference < 0.05
        rows = short.encode_image(held_out.images).reshape(-1, 2, 16)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1.0, atol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dtype": "int8"}, "^dtype='int8': use one of float32, bfloat16, float16$"),
            ({"device": "abacus"}, "^device='abacus': "),
            ({"leave_out": [2]}, r"^leave_out=\[2\]: experts are 0 to 1, and one must stay$"),
            ({"leave_out": [0, 1]}, r"^leave_out=\[0, 1\]: experts are 0 to 1, and one must stay$"),
        ],
    )
    def test_wrong_ones_are_refused(self, run: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            mode_ray.load(run, **options)
