"""The experts of a run, mixed by the weights of the task: the object behind `mode_ray.load`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from mode_ray.atlas.summary import near_captions, read_summary
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.evaluate import RoutingRule
from mode_ray.embed.load import load_encoder
from mode_ray.ensemble.expert import Embeddings, EnsembleExpert, prepared_batches, text_list
from mode_ray.ensemble.images import ImageInput
from mode_ray.ensemble.source import EnsembleSource, find_source
from mode_ray.ensemble.task import NearestCluster, Task, Template, class_texts_of
from mode_ray.errors import UsageError
from mode_ray.models.encode import Expert, Precision
from mode_ray.models.shared_trunks import Trunks
from mode_ray.models.together import encode_images, encode_texts
from mode_ray.routing.mix import (
    concatenated_images,
    concatenated_texts,
    ensemble_scores,
    keep_top,
    probabilities,
    without_experts,
)
from mode_ray.routing.router import Router
from mode_ray.routing.weights import mean_direction
from mode_ray.storage import Location
from mode_ray.util.devices import pick_device

if TYPE_CHECKING:
    import torch

    from mode_ray.ensemble.open_clip_model import EnsembleModel, EnsembleTokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification:
    """The answer to `Ensemble.classify`.

    Attributes:
        labels: The best label of every image.
        scores: Weighted mean of the experts' cosines, float32 [images, labels].
        probabilities: softmax over the labels, float64 [images, labels].
        weights: The experts' weights for the task, float64 [n].
        task: The task; `task.labels` names the columns.
    """

    labels: list[str]
    scores: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    task: Task

    def to_list(self) -> list[list[dict[str, Any]]]:
        """For every image a list of `{"score", "label"}`, best first, in the format of Hugging Face's pipelines."""
        names = self.task.labels
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        return [
            [{"score": float(row[column]), "label": names[column]} for column in columns]
            for row, columns in zip(self.probabilities, order, strict=True)
        ]


class Ensemble:
    """The experts of a run, mixed by routing weights. `mode_ray.load` makes one.

    Models and caption encoder are loaded when they are first used. Experts with equal trunks hold one trunk, which
    runs once for all of them. Use an ensemble from one thread at a time.

    Args:
        source: What it is read from.
        device: Device of the experts and of the caption encoder: `auto`, `cpu`, `cuda`, `cuda:1`, ….
        dtype: Arithmetic of the experts: `float32`, `bfloat16` or `float16`. Results are float32 in any case.
    """

    def __init__(self, source: EnsembleSource, device: str = "auto", dtype: Precision = "float32") -> None:
        self._source = source
        self._device = device
        self._dtype = dtype
        self._loaded: dict[int, Expert] = {}
        self._trunks = Trunks()

    def __repr__(self) -> str:
        left_out = [number for number in range(self.n) if number not in self.present]
        return f"Ensemble({self._source.place}, n={self.n}{f', leave_out={left_out}' if left_out else ''})"

    @property
    def n(self) -> int:
        """Number of experts, including those that are left out."""
        return len(self._source.experts)

    @property
    def clustering(self) -> Clustering:
        """The clustering whose centers route a task."""
        return self._source.clustering

    @cached_property
    def experts(self) -> dict[int, EnsembleExpert]:
        """The experts by id, without those that are left out. The first access loads all of them."""
        images = self._source.images
        return {
            number: EnsembleExpert(number=number, model=self.model(number), images=images) for number in self.present
        }

    def task(
        self,
        labels: Sequence[str],
        templates: Sequence[Template] = ("{}",),
        *,
        rule: RoutingRule | None = None,
        top: int | None = None,
    ) -> Task:
        """Compute the experts' weights for a task once, to use the task many times.

        Args:
            labels: Class names, or texts.
            templates: Prompts with `{}` where the label belongs, or functions from label to text.
            rule: A routing rule; by default the run's.
            top: Use only the `top` experts of largest weight. The others are not loaded and not run.

        Raises:
            UsageError: There are no labels, a template has no place for the label, or there is no such rule.
            DataError: The caption encoder knows no word of any label.
        """
        texts = class_texts_of(labels, templates)
        if top is not None and top < 1:
            raise UsageError(f"top={top}: use at least one expert")
        routed = self._router.classes(texts, _checked_rule(rule))
        weights_c = self._without_missing(routed.weights.weights_c)
        if top is not None:
            weights_c = np.asarray(keep_top(weights_c, min(top, self.n)), np.float64)
        group_m, known = self.clustering.experts_of(self.n), set(routed.known)
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
            unknown=tuple(label for position, label in enumerate(labels) if position not in known),
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
            images: One image or several: PIL images, uint8 arrays, encoded bytes, paths or URIs. A generator is
                read a batch at a time.
            labels: Class names, or a task that `task` returned.
            templates: As for `task`; leave it out with a task.
            rule: As for `task`; leave it out with a task.

        Raises:
            UsageError: As `task`, or an image is of a type that is not supported.
            DataError: As `task`, or an image cannot be read.
        """
        if isinstance(labels, Task):
            if rule is not None or tuple(templates) != ("{}",):
                raise UsageError("classify: a task has its own templates and rule: give them to ensemble.task")
            task = labels
        else:
            task = self.task(labels, templates, rule=rule)
        active = np.flatnonzero(task.weights).tolist()
        models = [self.model(expert) for expert in active]
        classifiers = [classifier for classifier in task.classifiers if classifier is not None]
        scores = [
            ensemble_scores(
                [
                    features_bd @ classifier_ld.T
                    for features_bd, classifier_ld in zip(encode_images(models, batch), classifiers, strict=True)
                ],
                task.weights[active],
            )
            for batch in prepared_batches(images, self._first, self._source.images)
        ]
        scores_il = np.concatenate(scores) if scores else np.zeros((0, len(task.labels)), np.float32)
        scales_c = np.array([model.logit_scale for model in models])
        return Classification(
            labels=[task.labels[column] for column in scores_il.argmax(axis=1)],
            scores=scores_il,
            probabilities=np.asarray(probabilities(scores_il, task.weights[active], scales_c), np.float64),
            weights=task.weights,
            task=task,
        )

    def encode_image(self, images: ImageInput | Iterable[ImageInput]) -> Embeddings:
        """The experts' unit embeddings of images side by side, float32 [images, sum of dimensions].

        They do not depend on a task, so an index of them serves any task. The inner product with a row of
        `encode_text` is the ensemble's score. The columns of an expert that is left out are 0.

        Args:
            images: As for `classify`.

        Raises:
            UsageError: An image is of a type that is not supported.
            DataError: An image cannot be read.
        """
        rows = [
            concatenated_images(self._image_sides(batch))
            for batch in prepared_batches(images, self._first, self._source.images)
        ]
        return np.concatenate(rows) if rows else np.zeros((0, self.n * self._first.dimension), np.float32)

    def encode_text(self, texts: str | Sequence[str], task: Task | None = None) -> Embeddings:
        """The experts' embeddings of texts side by side, each times its weight, float32 [texts, sum of dimensions].

        Args:
            texts: The texts.
            task: The task whose weights to use. By default every text is a task of its own.

        Raises:
            UsageError: An entry is not a text.
            DataError: The caption encoder knows no word of any text.
        """
        listed = text_list(texts, "encode_text")
        if not listed:
            return np.zeros((0, self.n * self._first.dimension), np.float32)
        weights = self.weights_of_each(listed) if task is None else task.weights
        used = weights.reshape(-1, self.n).max(axis=0) > 0.0
        asked = np.flatnonzero(used).tolist()
        encoded = dict(zip(asked, encode_texts([self.model(number) for number in asked], listed), strict=True))
        nothing = np.zeros((len(listed), self._first.dimension), np.float32)
        sides = [encoded.get(number, nothing) for number in range(self.n)]
        return concatenated_texts(sides, weights).astype(np.float32)

    def weights_of_each(self, texts: Sequence[str], rule: RoutingRule | None = None) -> npt.NDArray[np.float64]:
        """Routing weights of every text as a task of its own, float64 [texts, n].

        A text without a word that the caption encoder knows gets the mean weights of the other texts.

        Args:
            texts: The texts.
            rule: A routing rule; by default the run's.

        Raises:
            UsageError: There is no such rule.
            DataError: The caption encoder knows no word of any text.
        """
        return self._without_missing(self._router.each(texts, _checked_rule(rule)))

    def create_model_and_transforms(self, task: Task | None = None) -> "tuple[EnsembleModel, Any, Any]":
        """The ensemble as an open_clip model, for code that expects one, such as clip_benchmark.

        Args:
            task: The task whose weights are used: give one for classification (labels and templates) and to retrieve
                texts for images (the captions as labels). Prompts of the task are encoded as the ensemble's
                classifier. Leave it out to retrieve images for texts: then every text is a task of its own.

        Returns:
            (model, preprocess, preprocess), as `open_clip.create_model_and_transforms`. Tokenize the texts for
            `model.encode_text` by `get_tokenizer()`.
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
        placement = source.encoder_placement.model_copy(update={"device": self._device})
        encoder = load_encoder(source.encoder, placement)
        return Router(encoder, source.clustering, self.n, source.routing)

    @cached_property
    def _near_captions(self) -> Sequence[Sequence[str]]:
        m = len(self.clustering.centers_md)
        return near_captions(read_summary(self._source.clusters, m), m)

    @cached_property
    def present(self) -> list[int]:
        """Ids of the experts that are not left out, ascending."""
        return sorted(number for number, folder in enumerate(self._source.experts) if folder is not None)

    @property
    def _first(self) -> Expert:
        """A model that prepares images and tokenizes; all experts of a run do both alike."""
        return self.model(min(self._loaded, default=self.present[0]))

    def model(self, number: int) -> Expert:
        """The loaded model of an expert.

        Raises:
            UsageError: The expert is left out.
            DataError: Its folder is damaged.
        """
        if number not in self._loaded:
            folder = self._source.experts[number]
            if folder is None:
                raise UsageError(f"expert {number} is left out of this ensemble")
            self._loaded[number] = Expert(folder, self._device, self._dtype, trunks=self._trunks)
        return self._loaded[number]

    def _image_sides(self, batch: "torch.Tensor") -> list[Embeddings]:
        models = [self.model(number) for number in self.present]
        encoded = dict(zip(self.present, encode_images(models, batch), strict=True))
        nothing = np.zeros((len(batch), self._first.dimension), np.float32)
        return [encoded.get(number, nothing) for number in range(self.n)]

    def _without_missing(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        missing = sorted(set(range(self.n)) - set(self.present))
        return np.asarray(without_experts(weights, missing) if missing else weights, np.float64)

    def _classifiers(self, task: Task) -> list[Embeddings | None]:
        flat = [text for texts in task.class_texts for text in texts]
        ends = np.cumsum([len(texts) for texts in task.class_texts])[:-1]

        active = np.flatnonzero(task.weights).tolist()
        encoded = encode_texts([self.model(expert) for expert in active], flat)
        found = {
            expert: np.stack([mean_direction(rows) for rows in np.split(rows_td, ends)])
            for expert, rows_td in zip(active, encoded, strict=True)
        }
        return [found.get(expert) for expert in range(self.n)]


def _checked_rule(rule: RoutingRule | None) -> RoutingRule | None:
    if rule is not None and rule not in get_args(RoutingRule):
        raise UsageError(f"rule={rule!r}: use one of {', '.join(get_args(RoutingRule))}")
    return rule


def load(
    source: str | Path | Location,
    *,
    device: str = "auto",
    dtype: Precision = "float32",
    leave_out: Sequence[int] = (),
) -> Ensemble:
    """Load the ensemble of a run, of an exported folder or of the Hugging Face hub.

    Args:
        source: A run directory, a folder that `mode-ray export` wrote, local, `s3://…` or `gs://…`, or a model of the
            Hugging Face hub, `hf-hub:ORG/NAME`.
        device: Device of the experts and of the caption encoder: `auto`, `cpu`, `cuda`, `cuda:1`, …. `auto` is CUDA
            if there is a GPU.
        dtype: Arithmetic of the experts: `float32`, `bfloat16` or `float16`.
        leave_out: Ids of experts not to use. Their weight is distributed over the others.

    Raises:
        UsageError: No ensemble exists there, a stage of the run is not done, or an argument is wrong.
        DataError: A file is missing or damaged; the message names it.
    """
    if dtype not in get_args(Precision):
        raise UsageError(f"dtype={dtype!r}: use one of {', '.join(get_args(Precision))}")
    pick_device(device)  # before anything is loaded
    return Ensemble(find_source(source, leave_out), device, dtype)
