"""Scores of the images of a task with the labels: the input of every metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported at their first use: the driver does without them

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics.ranking import Ranks, best_ranks, label_ranks, right_pairs

TaskKind = Literal["classification", "multilabel", "retrieval"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The scores of the images of a task, and the labels.

    Attributes:
        kind: Kind of the task.
        scores_il: One row per image, one column per class or caption.
        labels: Classification: the class of every image, integers [i]. Multi-label: the classes of every image, bool
            [i, l]. Retrieval: the image of every caption, integers [l].
        captions: Retrieval: the captions, if equal ones count as one. By default all captions are different.
        text_to_image_scores_il: Retrieval: scores for the direction text to image, if they differ because every query
            text has its own routing weights.

    Raises:
        DataError: Shapes do not match, there are no scores, a label is out of range or a score is not finite.
    """

    kind: TaskKind
    scores_il: npt.NDArray[np.floating]
    labels: np.ndarray
    captions: Sequence[str] | None = None
    text_to_image_scores_il: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        images, texts = self.scores_il.shape
        sides = "images and texts" if self.kind == "retrieval" else "images and classes"
        expected: tuple[int, ...] = {
            "classification": (len(self.labels), texts),
            "multilabel": self.labels.shape,
            "retrieval": (images, len(self.labels)),
        }[self.kind]
        check_scores(self.scores_il, expected, sides)
        if self.text_to_image_scores_il is not None:
            check_scores(self.text_to_image_scores_il, expected, sides)
        if self.kind != "multilabel":
            count, name = (images, "image_of_text runs") if self.kind == "retrieval" else (texts, "labels run")
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= count:
                raise DataError(f"{name} from {low} to {high}, outside 0 to {count - 1}")
        if self.captions is not None and len(self.captions) != texts:
            raise DataError(f"there are {len(self.captions)} captions but {texts} texts")

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.scores_il)

    @property
    def texts(self) -> int:
        """Number of classes or captions."""
        return int(self.scores_il.shape[1])

    @cached_property
    def class_ranks_i(self) -> Ranks:
        """Classification: rank of the class of every image."""
        return label_ranks(self.scores_il, self.labels)

    @cached_property
    def right_il(self) -> "scipy.sparse.csr_array":
        """Retrieval: which caption is right for which image."""
        return right_pairs(self.labels, self.captions, self.images)

    @cached_property
    def text_ranks_i(self) -> Ranks:
        """Retrieval: rank of the best right caption of every image."""
        return best_ranks(self.scores_il, self.right_il)

    @cached_property
    def image_ranks_l(self) -> Ranks:
        """Retrieval: rank of the best right image of every caption."""
        scores_il = self.scores_il if self.text_to_image_scores_il is None else self.text_to_image_scores_il
        return best_ranks(scores_il.T, self.right_il.T.tocsr())


def check_scores(scores: npt.NDArray[np.floating], shape: tuple[int, ...], sides: str) -> None:
    """Raise `DataError` for scores with a wrong or empty shape, or with a value that is not finite."""
    if scores.shape != shape:
        raise DataError(f"scores have shape {scores.shape}, expected {shape} ({sides})")
    if 0 in shape:
        raise DataError(f"no scores to measure: shape {shape} ({sides})")
    if not np.isfinite(scores).all():
        raise DataError("scores contain a value that is not finite: the output of the model is broken")
