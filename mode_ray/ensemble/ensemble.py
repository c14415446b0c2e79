"""The experts of a run, mixed by the weights of the task: the object behind `mode_ray.load`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from mode_ray.atlas.summary import near_captions, read_summary
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.evaluate import RoutingRule
from mode_ray.embed.load import load_encoder
from mode_ray.ensemble.images import ImageInput, as_pil
from mode_ray.ensemble.source import EnsembleSource, find_source
from mode_ray.ensemble.task import NearestCluster, Task, Template, class_texts_of
from mode_ray.errors import UsageError
from mode_ray.models.encode import Expert, Precision
from mode_ray.routing.mix import (
    concatenated_images,
    concatenated_texts,
    keep_top,
    probabilities,
    without_experts,
)
from mode_ray.routing.router import Router
from mode_ray.routing.weights import mean_direction
from mode_ray.storage import Location

if TYPE_CHECKING:
    from mode_ray.ensemble.open_clip_model import EnsembleModel, EnsembleTokenizer

Embeddings = npt.NDArray[np.float32]
_IMAGES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification:
    """The answer to `Ensemble.classify`.

    Attributes:
        labels: The best label of every image.
        scores: Weighted mean of the experts' cosines, float32 [images, labels].
        probabilities: softmax over the labels, float64 [images, labels].
        weights: The experts' weights, float64 [n].
        task: The task, with its labels in the order of the columns.
    """

    labels: list[str]
    scores: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    task: Task

    def to_list(self) -> list[list[dict[str, Any]]]:
        """For every image its labels with `score`, best first, as Hugging Face's zero-shot pipelines return them."""
        names = self.task.labels
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        return [
            [{"score": float(row[column]), "label": names[column]} for column in columns]
            for row, columns in zip(self.probabilities, order, strict=True)
        ]


class Ensemble:
    """Experts that are mixed by routing weights. Models and encoder are loaded when they are first used.

    An ensemble is not safe to use from several threads at once.

    Args:
        source: What it is read from.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ….
        dtype: Arithmetic of the experts: `float32`, `bfloat16` or `float16`.
    """

    def __init__(self, source: EnsembleSource, device: str = "auto", dtype: Precision = "float32") -> None:
        self._source = source
        self._device = device
        self._dtype = dtype

    @classmethod
    def load(
        cls,
        source: str | Path | Location,
        *,
        device: str = "auto",
        dtype: Precision = "float32",
        leave_out: Sequence[int] = (),
    ) -> Self:
        """Load an ensemble.

        Args:
            source: A run directory, a folder that `mode-ray export` wrote, local, `s3://…` or `gs://…`, or a model of
                the Hugging Face hub, `hf-hub:ORG/NAME`.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, ….
            dtype: Arithmetic of the experts: `float32`, `bfloat16` or `float16`.
            leave_out: Ids of experts to do without; their weight goes to the others.

        Raises:
            UsageError: No ensemble exists there, a stage of the run is not done, or an argument is wrong.
            DataError: A file is missing or damaged; the message names it.
        """
        if dtype not in ("float32", "bfloat16", "float16"):
            raise UsageError(f"dtype={dtype!r}: use float32, bfloat16 or float16")
        return cls(find_source(source, leave_out), device, dtype)

    @property
    def n(self) -> int:
        """Number of experts, those that are left out too."""
        return len(self._source.experts)

    @property
    def clustering(self) -> Clustering:
        """The clustering that routes."""
        return self._source.clustering

    @cached_property
    def experts(self) -> list[Expert | None]:
        """The experts by id; None for an expert that is left out."""
        return [
            None if folder is None else Expert(folder, self._device, self._dtype) for folder in self._source.experts
        ]

    def task(
        self,
        labels: Sequence[str],
        templates: Sequence[Template] = ("{}",),
        *,
        rule: RoutingRule | None = None,
        top: int | None = None,
    ) -> Task:
        """Route a task once, to use it many times.

        Args:
            labels: Class names, or texts.
            templates: Prompts with `{}` where the label belongs, or functions from label to text.
            rule: Another routing rule than the run's.
            top: Use only the `top` experts of largest weight; the others then cost nothing.

        Raises:
            UsageError: There are no labels, or a template has no place for the label.
            DataError: The caption encoder knows no word of any label.
        """
        texts = class_texts_of(labels, templates)
        routed = self._router.classes(texts, rule)
        weights_c = self._present(routed.weights.weights_c)
        if top is not None:
            if top < 1:
                raise UsageError(f"top={top}: at least one expert has to answer")
            weights_c = np.asarray(keep_top(weights_c, min(top, self.n)), np.float64)
        group_m = self.clustering.experts_of(self.n)
        nearest = zip(
            routed.known, routed.weights.nearest_fine_l, routed.weights.nearest_squared_distance_l, strict=True
        )
        return Task(
            labels=tuple(labels),
            class_texts=texts,
            weights=weights_c,
            entropy=routed.weights.normalised_entropy,
            rule=routed.weights.rule,
            nearest=tuple(
                NearestCluster(
                    label=labels[position],
                    fine=int(fine),
                    expert=int(group_m[fine]),
                    squared_distance=float(squared_distance),
                )
                for position, fine, squared_distance in nearest
            ),
            unknown=tuple(label for position, label in enumerate(labels) if position not in set(routed.known)),
            _routing=routed.weights,
            _group_m=group_m,
            _captions=lambda fine: self._near_captions[fine],
            _encode=self._classifiers,
        )

    route = task

    def classify(
        self,
        images: ImageInput | Iterable[ImageInput],
        labels: Sequence[str] | Task,
        templates: Sequence[Template] = ("{}",),
        *,
        rule: RoutingRule | None = None,
    ) -> Classification:
        """Zero-shot classification.

        Args:
            images: One image or several: PIL images, uint8 arrays, encoded bytes, paths or URIs.
            labels: Class names, or a task that was routed before.
            templates: As for `task`.
            rule: As for `task`.

        Raises:
            UsageError: As `task`, or an image is of a type that is not supported.
            DataError: As `task`, or an image cannot be read.
        """
        task = labels if isinstance(labels, Task) else self.task(labels, templates, rule=rule)
        pictures = _several(images)
        scores_il = np.zeros((len(pictures), len(task.labels)), np.float32)
        active = [(expert, rows) for expert, rows in enumerate(task.classifiers) if rows is not None]
        for start in range(0, len(pictures), _IMAGES_AT_ONCE):
            rows = slice(start, start + _IMAGES_AT_ONCE)
            prepared = self._prepare(pictures[rows], start)
            for expert, classifier_ld in active:
                cosines_il = self._expert(expert).encode_images(prepared) @ classifier_ld.T
                scores_il[rows] += np.float32(task.weights[expert]) * cosines_il
        scales_c = np.array([0.0 if expert is None else expert.logit_scale for expert in self.experts])
        return Classification(
            labels=[task.labels[column] for column in scores_il.argmax(axis=1)] if len(pictures) else [],
            scores=scores_il,
            probabilities=np.asarray(probabilities(scores_il, task.weights, scales_c), np.float64),
            weights=task.weights,
            task=task,
        )

    def encode_image(self, images: ImageInput | Iterable[ImageInput]) -> Embeddings:
        """The experts' unit embeddings of images side by side, float32 [images, sum of dimensions].

        They do not depend on a task: index them once. The inner product with `encode_text` is the ensemble's score.
        """
        pictures = _several(images)
        batches = []
        for start in range(0, len(pictures), _IMAGES_AT_ONCE):
            prepared = self._prepare(pictures[start : start + _IMAGES_AT_ONCE], start)
            sides = [
                np.zeros((len(prepared), self._first.dimension), np.float32)
                if expert is None
                else expert.encode_images(prepared)
                for expert in self.experts
            ]
            batches.append(concatenated_images(sides))
        return np.concatenate(batches) if batches else np.zeros((0, self.n * self._first.dimension), np.float32)

    def encode_text(self, texts: str | Sequence[str], task: Task | None = None) -> Embeddings:
        """The experts' embeddings of texts side by side, each times its weight, float32 [texts, sum of dimensions].

        Args:
            texts: The texts.
            task: Whose weights to use; by default every text is a task of its own.

        Raises:
            UsageError: There are no texts.
            DataError: The caption encoder knows no word of any text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UsageError("encode_text: no texts")
        weights = self.weights_of_each(texts) if task is None else task.weights
        sides = [
            np.zeros((len(texts), self._first.dimension), np.float32) if expert is None else expert.encode_texts(texts)
            for expert in self.experts
        ]
        return concatenated_texts(sides, weights).astype(np.float32)

    def weights_of_each(self, texts: Sequence[str], rule: RoutingRule | None = None) -> npt.NDArray[np.float64]:
        """Routing weights of every text as a task of its own, float64 [texts, n]."""
        return self._present(self._router.each(texts, rule))

    def create_model_and_transforms(self, task: Task | None = None) -> "tuple[EnsembleModel, Any, Any]":
        """The ensemble with the interface of an open_clip model, for code that expects one.

        Args:
            task: The task whose weights are used, for classification and text retrieval. Its prompts are encoded as
                the ensemble's classifier. By default every text is a task of its own, as for image retrieval.

        Returns:
            (model, preprocess, preprocess), as `open_clip.create_model_and_transforms`. Texts for `encode_text` are
            tokenized by `get_tokenizer()`.
        """
        from mode_ray.ensemble.open_clip_model import EnsembleModel

        preprocess = self._first.prepare
        return EnsembleModel(self, self.get_tokenizer(), task), preprocess, preprocess

    def get_tokenizer(self) -> "EnsembleTokenizer":
        """The tokenizer of the experts, as `open_clip.get_tokenizer`."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> "EnsembleTokenizer":
        from mode_ray.ensemble.open_clip_model import EnsembleTokenizer

        return EnsembleTokenizer(self._first.tokenizer, self._first.context_length)

    @cached_property
    def _router(self) -> Router:
        source = self._source
        encoder = load_encoder(source.encoder, source.encoder_placement)
        return Router(encoder, source.clustering, self.n, source.routing)

    @cached_property
    def _near_captions(self) -> Sequence[Sequence[str]]:
        m = len(self.clustering.centers_md)
        return near_captions(read_summary(self._source.clusters, m), m)

    @property
    def _first(self) -> Expert:
        return next(expert for expert in self.experts if expert is not None)

    def _expert(self, number: int) -> Expert:
        expert = self.experts[number]
        if expert is None:
            raise UsageError(f"expert {number} is left out of this ensemble")
        return expert

    def _present(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        missing = [number for number, folder in enumerate(self._source.experts) if folder is None]
        return np.asarray(without_experts(weights, missing) if missing else weights, np.float64)

    def _classifiers(self, task: Task) -> list[Embeddings | None]:
        flat = [text for texts in task.class_texts for text in texts]
        ends = np.cumsum([len(texts) for texts in task.class_texts])[:-1]

        def classifier(expert: int) -> Embeddings:
            rows_td = self._expert(expert).encode_texts(flat)
            return np.stack([mean_direction(rows) for rows in np.split(rows_td, ends)])

        return [classifier(expert) if weight > 0.0 else None for expert, weight in enumerate(task.weights)]

    def _prepare(self, pictures: Sequence[ImageInput], start: int) -> Any:  # noqa: ANN401
        import torch

        return torch.stack(
            [self._first.prepare(as_pil(image, f"image {start + place}")) for place, image in enumerate(pictures)]
        )


def _several(images: ImageInput | Iterable[ImageInput]) -> list[ImageInput]:
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, (str, Path, bytes, np.ndarray)) or hasattr(images, "convert"):
        return [images]  # type: ignore[list-item]
    if not isinstance(images, Iterable):
        raise UsageError(f"expected an image or several, got {type(images).__name__}")
    return list(images)


def load(
    source: str | Path | Location,
    *,
    device: str = "auto",
    dtype: Precision = "float32",
    leave_out: Sequence[int] = (),
) -> Ensemble:
    """Load the ensemble of a run, of an exported folder or of the Hugging Face hub; see `Ensemble.load`."""
    return Ensemble.load(source, device=device, dtype=dtype, leave_out=leave_out)
