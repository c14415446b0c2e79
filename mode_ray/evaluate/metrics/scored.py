"""Scores of a task's images beside what is right: what every metric is a function of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mode_ray.errors import DataError
from mode_ray.evaluate.metrics.ranking import Ranks, best_ranks, label_ranks, right_pairs

TaskKind = Literal["classification", "multilabel", "retrieval"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The scores of a task's images, and what is right.

    Attributes:
        kind: Of the task.
        scores_il: One row an image, one column a class or a caption.
        labels: Classification: the class of every image, integers [i]. Multi-label: which classes it has, bool [i, l].
            Retrieval: the image of every caption, integers [l].
        captions: Retrieval: the captions, to find equal ones; by default all count as different.
        text_to_image_scores_il: Retrieval: scores for the direction text to image, where they differ because every
            query text has its own routing weights.

    Raises:
        DataError: Shapes do not fit, there are no scores, a label is out of range or a score is not a number.
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
        """Classification: rank of every image's class."""
        return label_ranks(self.scores_il, self.labels)

    @cached_property
    def right_il(self) -> sparse.csr_array:
        """Retrieval: which caption is right for which image."""
        return right_pairs(self.labels, self.captions, self.images)

    @cached_property
    def text_ranks_i(self) -> Ranks:
        """Retrieval: rank of every image's best right caption."""
        return best_ranks(self.scores_il, self.right_il)

    @cached_property
    def image_ranks_l(self) -> Ranks:
        """Retrieval: rank of every caption's best right image."""
        scores_il = self.scores_il if self.text_to_image_scores_il is None else self.text_to_image_scores_il
        return best_ranks(scores_il.T, self.right_il.T.tocsr())


def check_scores(scores: npt.NDArray[np.floating], shape: tuple[int, ...], sides: str) -> None:
    """Refuse scores of another shape than expected, none at all, and such as are no finite numbers.

    Raises:
        DataError: Says which.
    """
    if scores.shape != shape:
        raise DataError(f"scores have shape {scores.shape}, expected {shape} ({sides})")
    if 0 in shape:
        raise DataError(f"no scores to measure: shape {shape} ({sides})")
    if not np.isfinite(scores).all():
        raise DataError("scores hold a value that is not a finite number: the model's output is broken")
