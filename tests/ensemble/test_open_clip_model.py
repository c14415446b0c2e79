"""The ensemble as an open_clip model: clip_benchmark's protocol gives the figures of mode_ray's own evaluation.

The protocol is written out here, as clip_benchmark documents it; where clip_benchmark is installed its own functions
run too.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from run_of_before import COLOURS, TEMPLATES, HeldOut

from mode_ray.ensemble.ensemble import Ensemble
from mode_ray.ensemble.open_clip_model import EnsembleModel
from mode_ray.errors import UsageError
from mode_ray.evaluate.metrics.score import measure
from mode_ray.evaluate.metrics.scored import Scored

BATCH = 16
needs_clip_benchmark = pytest.mark.skipif(
    importlib.util.find_spec("clip_benchmark") is None, reason="clip_benchmark is not installed"
)


class Samples(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A data set as clip_benchmark has them."""

    classes = COLOURS

    def __init__(self, images: torch.Tensor, labels: Sequence[int]) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self._images[number], self._labels[number]


def protocol_classes(ensemble: Ensemble, model: EnsembleModel, templates: Sequence[str]) -> torch.Tensor:
    """Normalise every prompt's embedding, average a class's, normalise again: [d, classes]."""
    tokenizer = ensemble.get_tokenizer()
    columns = []
    with torch.no_grad():
        for colour in COLOURS:
            rows = F.normalize(model.encode_text(tokenizer([t.format(colour) for t in templates])), dim=-1)
            columns.append(F.normalize(rows.mean(dim=0), dim=-1))
    return torch.stack(columns, dim=1)


def image_batches(ensemble: Ensemble, model: EnsembleModel, held_out: HeldOut) -> Iterator[torch.Tensor]:
    _, _, preprocess = ensemble.create_model_and_transforms()
    prepared = torch.stack([preprocess(image) for image in held_out.images])
    yield from torch.split(prepared, BATCH)


def protocol_logits(ensemble: Ensemble, model: EnsembleModel, held_out: HeldOut) -> np.ndarray:
    classes = protocol_classes(ensemble, model, TEMPLATES)
    with torch.no_grad():
        rows = [F.normalize(model.encode_image(batch), dim=-1) for batch in image_batches(ensemble, model, held_out)]
    logits: np.ndarray = (torch.cat(rows) @ classes).numpy()
    return logits


def evaluated(run: Path, rule: str) -> dict[str, float]:
    """The figures of the run's own report."""
    report = json.loads((run / "evaluation/report.json").read_text())
    [figures] = [model["metrics"]["colours"] for model in report["models"] if model["rule"] == rule]
    assert isinstance(figures, dict)
    return figures


def with_distinct_captions(held_out: HeldOut) -> HeldOut:
    """The first image of each caption: clip_benchmark breaks ties among equal captions at random."""
    firsts = sorted(held_out.captions.index(caption) for caption in set(held_out.captions))
    return HeldOut(*([column[row] for row in firsts] for column in vars(held_out).values()))


def own_cosines(ensemble: Ensemble, held_out: HeldOut) -> np.ndarray:
    """Every expert's cosines of images and captions, [n, images, captions]."""
    experts = ensemble.experts.values()
    return np.stack([e.encode_image(held_out.images) @ e.encode_text(held_out.captions).T for e in experts])


class TestClassification:
    @pytest.mark.parametrize("rule", ["calibrated", "released"])
    def test_the_protocol_gives_the_evaluations_figures(
        self, ensemble: Ensemble, run: Path, held_out: HeldOut, rule: str
    ) -> None:
        task = ensemble.task(COLOURS, TEMPLATES, rule=rule)  # type: ignore[arg-type]
        model, _, _ = ensemble.create_model_and_transforms(task=task)
        logits = protocol_logits(ensemble, model, held_out)
        np.testing.assert_allclose(logits, ensemble.classify(held_out.images, task).scores, atol=1e-5)
        found = measure(Scored(kind="classification", scores_il=logits, labels=np.array(held_out.colours)))
        assert found == pytest.approx(evaluated(run, rule), abs=1e-4)

    def test_prompts_that_two_classes_share_are_encoded_as_themselves(self, ensemble: Ensemble) -> None:
        task = ensemble.task(["red", "green", "red"], ["{}", lambda _: "a picture"])
        model, _, _ = ensemble.create_model_and_transforms(task=task)
        tokens = ensemble.get_tokenizer()(["red", "a picture"])
        plain, _, _ = ensemble.create_model_and_transforms(task=ensemble.task(["black"]))
        red, picture = model.encode_text(tokens)
        torch.testing.assert_close(picture, plain.encode_text(tokens)[1])
        assert not torch.allclose(red, plain.encode_text(tokens)[0])

    @needs_clip_benchmark
    def test_clip_benchmarks_own_functions(self, ensemble: Ensemble, run: Path, held_out: HeldOut) -> None:
        benchmark = importlib.import_module("clip_benchmark.metrics.zeroshot_classification")

        task = ensemble.task(COLOURS, TEMPLATES)
        model, _, _ = ensemble.create_model_and_transforms(task=task)
        samples = Samples(torch.cat(list(image_batches(ensemble, model, held_out))), held_out.colours)
        loader = torch.utils.data.DataLoader(samples, BATCH)
        templates = [template.replace("{}", "{c}") for template in TEMPLATES]
        found = benchmark.evaluate(model, loader, ensemble.get_tokenizer(), list(COLOURS), templates, "cpu", amp=False)
        own = evaluated(run, "calibrated")
        expected = {"acc1": own["top1"], "acc5": own["top5"], "mean_per_class_recall": own["mean_per_class"]}
        assert found == pytest.approx(expected, abs=1e-4)


class TestRetrieval:
    def test_images_for_texts_each_text_a_task_of_its_own(self, ensemble: Ensemble, held_out: HeldOut) -> None:
        model, _, _ = ensemble.create_model_and_transforms()
        with torch.no_grad():
            texts = F.normalize(model.encode_text(ensemble.get_tokenizer()(held_out.captions)), dim=-1)
            images = [model.encode_image(batch) for batch in image_batches(ensemble, model, held_out)]
        found = (F.normalize(torch.cat(images), dim=-1) @ texts.T).numpy()
        weights = ensemble.weights_of_each(held_out.captions)
        own = np.einsum("lc,cil->il", weights, own_cosines(ensemble, held_out))
        # The same up to a positive factor of the text.
        factor = (found * own).sum(axis=0) / (own * own).sum(axis=0)
        assert (factor > 0).all()
        np.testing.assert_allclose(found, own * factor, atol=1e-5)
        direct = ensemble.encode_image(held_out.images) @ ensemble.encode_text(held_out.captions).T
        np.testing.assert_allclose(own, direct, atol=1e-6)

    def test_texts_for_images_all_texts_are_the_task(self, ensemble: Ensemble, held_out: HeldOut) -> None:
        task = ensemble.task(held_out.captions, rule="released")
        model, _, _ = ensemble.create_model_and_transforms(task=task)
        with torch.no_grad():
            texts = F.normalize(model.encode_text(ensemble.get_tokenizer()(held_out.captions)), dim=-1)
            images = [model.encode_image(batch) for batch in image_batches(ensemble, model, held_out)]
        found = (F.normalize(torch.cat(images), dim=-1) @ texts.T).numpy()
        np.testing.assert_allclose(found, np.tensordot(task.weights, own_cosines(ensemble, held_out), 1), atol=1e-5)

    @needs_clip_benchmark
    def test_clip_benchmarks_own_functions(self, ensemble: Ensemble, held_out: HeldOut) -> None:
        benchmark = importlib.import_module("clip_benchmark.metrics.zeroshot_retrieval")

        held_out = with_distinct_captions(held_out)
        captions, weights = held_out.captions, ensemble.weights_of_each(held_out.captions)
        task = ensemble.task(captions, rule="released")
        cosines = own_cosines(ensemble, held_out)
        expected = measure(
            Scored(
                kind="retrieval",
                scores_il=np.tensordot(task.weights, cosines, 1),
                labels=np.arange(len(captions)),
                text_to_image_scores_il=np.einsum("lc,cil->il", weights, cosines),
            )
        )
        figures: dict[str, float] = {}
        for direction, routed in (("image", None), ("text", task)):
            model, _, _ = ensemble.create_model_and_transforms(task=routed)
            batches = image_batches(ensemble, model, held_out)
            texts = [
                [[caption] for caption in captions[start : start + BATCH]] for start in range(0, len(captions), BATCH)
            ]
            loader = list(zip(batches, texts, strict=True))
            found = benchmark.evaluate(
                model, loader, ensemble.get_tokenizer(), "cpu", amp=False, recall_k_list=[1, 5, 10]
            )
            figures |= {name: value for name, value in found.items() if name.startswith(direction)}
        for k in (1, 5, 10):
            assert figures[f"image_retrieval_recall@{k}"] == pytest.approx(expected[f"text_to_image_r{k}"], abs=1e-4)
            assert figures[f"text_retrieval_recall@{k}"] == pytest.approx(expected[f"image_to_text_r{k}"], abs=1e-4)


class TestAsATorchModule:
    def test_it_has_what_users_of_open_clip_call(self, ensemble: Ensemble) -> None:
        model, train_preprocess, preprocess = ensemble.create_model_and_transforms(task=ensemble.task(COLOURS))
        assert model.to("cpu").eval() is model
        assert not model.training
        assert train_preprocess is preprocess
        assert model.logit_bias is None
        experts = [expert.model for expert in ensemble.experts.values()]
        assert float(model.logit_scale.exp()) == pytest.approx(np.mean([e.logit_scale for e in experts]), rel=1e-5)
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for expert in experts for p in expert.module.parameters()
        )
        images = torch.zeros(2, 3, *experts[0].image_size)
        tokens = ensemble.get_tokenizer()(["red", "green", "blue"])
        image_features, text_features, scale = model(images, tokens)
        assert (image_features.shape, text_features.shape, scale.ndim) == ((2, 32), (3, 32), 0)
        for rows in (image_features, text_features):
            torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))
        assert model(image=images)[1] is None

    def test_the_callers_autocast_does_not_change_the_arithmetic(self, ensemble: Ensemble) -> None:
        model, _, _ = ensemble.create_model_and_transforms()
        images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
        exact = model.encode_image(images)
        with torch.no_grad(), torch.autocast("cpu"):
            torch.testing.assert_close(model.encode_image(images), exact, atol=0, rtol=0)

    def test_features_can_train_a_probe(self, ensemble: Ensemble) -> None:
        model, _, _ = ensemble.create_model_and_transforms()
        probe = torch.nn.Linear(32, 2)
        loss: torch.Tensor = probe(model.encode_image(torch.ones(4, 3, 16, 16))).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert probe.weight.grad is not None

    def test_without_a_task_the_tokenizer_must_be_the_ensembles(self, ensemble: Ensemble) -> None:
        model, _, _ = ensemble.create_model_and_transforms()
        tokens = ensemble.get_tokenizer()("red")
        with pytest.raises(UsageError, match=r"^encode_text: unknown tokens: tokenize by ensemble\.get_tokenizer\(\)"):
            model.encode_text(tokens.flip(1))
        with pytest.raises(UsageError, match=r"^context_length=3: the experts take"):
            ensemble.get_tokenizer()("red", context_length=3)
