"""The usable samples of a task: images decoded once, labels as numbers, and counts of the rest."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from mode_ray.errors import DataError
from mode_ray.evaluate.tasks.samples import Sample
from mode_ray.evaluate.tasks.task import Task, label_key
from mode_ray.pairs.images import Pixels

_NO_IMAGE = "no image"
_BAD_IMAGE = "undecodable image"
_NO_TEXT = "no text"
_EMPTY_CAPTION = "empty caption"
_OTHER_CLASS = "not a class of the task"
_UNKNOWN_WORDS = "caption without a word known to the caption encoder"


def prepared_image(sample: Sample, prepare: Callable[[bytes, str], Pixels]) -> Pixels | DataError | None:
    """The image of a sample for `UsableSamples.take`; needs no order, so several threads can prepare images.

    Args:
        sample: The sample.
        prepare: Decodes an image, given with its place; raises `DataError` for one that cannot be used.
    """
    if sample.image is None:
        return None
    try:
        return prepare(sample.image, sample.place)
    except DataError as error:
        return error


class UsableSamples:
    """Collects the usable samples of a task, and counts those that are left out.

    Args:
        task: The task.

    Attributes:
        captions: Retrieval: the captions of all used images.
        skipped: Number of samples and captions left out, by reason.
        examples: Place of the first one, by reason.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._number_of_class = {label_key(label): number for number, label in enumerate(task.classes)}
        self._labels_of_image: list[tuple[int, ...]] = []
        self._image_of_caption: list[int] = []
        self.captions: list[str] = []
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    @classmethod
    def merged(cls, parts: "Sequence[UsableSamples]", order: Sequence[tuple[int, int]]) -> "UsableSamples":
        """Merge several parts into the samples of one pass.

        Args:
            parts: Parts of one task, before `keep_known`.
            order: Part and index in the part of every image, in order of the samples.
        """
        whole = cls(parts[0]._task)
        captions = [part._captions_by_image() for part in parts]
        for part, image in order:
            own = captions[part].get(image, [])
            whole._image_of_caption += [whole.images] * len(own)
            whole.captions += own
            whole._labels_of_image.append(parts[part]._labels_of_image[image])
        for one in parts:
            whole.skipped.update(one.skipped)
            for reason, place in one.examples.items():
                whole.examples.setdefault(reason, place)
        return whole

    @property
    def images(self) -> int:
        """Number of used images."""
        return len(self._labels_of_image)

    def take(self, sample: Sample, prepared: Pixels | DataError | None) -> Pixels | None:
        """The prepared image of a usable sample. Other samples are counted and return None.

        Args:
            sample: The sample.
            prepared: Its `prepared_image`.

        Raises:
            DataError: A label is not a class number; the message names file, row and field.
        """
        texts = [text for text in sample.texts or () if text.strip()]
        numbers = () if self._task.kind == "retrieval" else self._class_numbers(texts, sample.place)
        reason, place = self._refusal(sample, texts, numbers), sample.place
        if reason is None and isinstance(prepared, DataError):
            reason, place = _BAD_IMAGE, str(prepared)
        if reason is None and isinstance(prepared, np.ndarray):
            self._add(texts, numbers, sample)
            return prepared
        self._count(str(reason), place)
        return None

    def require_some(self) -> None:
        """Raise `DataError` if no sample is usable."""
        if not self.images:
            left_out = dict(self.skipped)
            raise DataError(f"{self._task.place}: no usable sample ({left_out}); check its paths and fields")

    def labels(self) -> np.ndarray:
        """The labels, as described in `scored.Scored` for the kind of the task."""
        if self._task.kind == "retrieval":
            return np.array(self._image_of_caption, np.int64)
        if self._task.kind == "classification":
            return np.array([numbers[0] for numbers in self._labels_of_image], np.int64)
        labels_il = np.zeros((self.images, len(self._task.classes)), bool)
        for image, numbers in enumerate(self._labels_of_image):
            labels_il[image, list(numbers)] = True
        return labels_il

    def keep_known(self, known_l: np.ndarray) -> np.ndarray:
        """Keep the captions marked in `known_l`, and count the others. Images without captions are dropped.

        Returns:
            Previous indices of the images that are kept.
        """
        for caption in (caption for caption, known in zip(self.captions, known_l, strict=True) if not known):
            self._count(_UNKNOWN_WORDS, repr(caption))
        kept_of = np.array(self._image_of_caption, np.int64)[known_l]
        kept_images, renumbered = np.unique(kept_of, return_inverse=True)
        self.captions = [caption for caption, known in zip(self.captions, known_l, strict=True) if known]
        self._image_of_caption = renumbered.tolist()
        self._labels_of_image = [self._labels_of_image[image] for image in kept_images]
        return kept_images

    def _captions_by_image(self) -> dict[int, list[str]]:
        by_image: dict[int, list[str]] = {}
        for image, caption in zip(self._image_of_caption, self.captions, strict=True):
            by_image.setdefault(image, []).append(caption)
        return by_image

    def _refusal(self, sample: Sample, texts: list[str], numbers: tuple[int, ...]) -> str | None:
        """Why a sample cannot be used, whatever its image is."""
        # An image of a multi-label task may have no label.
        if sample.texts is None or (not texts and self._task.kind != "multilabel"):
            return _NO_TEXT
        if self._task.kind == "classification" and not numbers:
            return _OTHER_CLASS
        return _NO_IMAGE if sample.image is None else None

    def _class_numbers(self, labels: list[str], place: str) -> tuple[int, ...]:
        """Numbers of the classes of an image. A classification task uses only the first label."""
        taken = labels[:1] if self._task.kind == "classification" else labels
        if self._task.labels == "index":
            return tuple(self._index(label, place) for label in taken)
        numbers = [self._number_of_class.get(label_key(label)) for label in taken]
        if self._task.kind == "multilabel" and None in numbers:
            # Without the label, the image would be a wrong negative. Without the image, the score would be biased.
            raise DataError(
                f"{place}: {self._task.text_field}: {taken[numbers.index(None)]!r} is not one of the classes of "
                f"{self._task.place}: add it"
            )
        return tuple(number for number in numbers if number is not None)

    def _index(self, label: str, place: str) -> int:
        classes = len(self._task.classes)
        field = f"{place}: {self._task.text_field}: label {label[:40]!r}"
        try:
            number = int(label)
        except ValueError:
            raise DataError(
                f"{field} is not a class number, as required by labels: index in {self._task.place}"
            ) from None
        if not 0 <= number < classes:
            raise DataError(f"{field} is outside 0 to {classes - 1}: {self._task.place} has {classes} classes")
        return number

    def _add(self, texts: list[str], numbers: tuple[int, ...], sample: Sample) -> None:
        if self._task.kind == "retrieval":
            self._image_of_caption += [self.images] * len(texts)
            self.captions += texts
            for _ in range(len(sample.texts or ()) - len(texts)):
                self._count(_EMPTY_CAPTION, sample.place)
        self._labels_of_image.append(numbers)

    def _count(self, reason: str, place: str) -> None:
        self.skipped[reason] += 1
        self.examples.setdefault(reason, place)
