"""Measures a model on held-out pairs while it trains."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image

from mode_ray.models.preprocess import ImageGeometry, ImageInput
from mode_ray.run_directory import CURVE_FILE
from mode_ray.storage import Location
from mode_ray.train.runs.measure_job import MeasureJob, read_curve

_ENCODED_AT_ONCE = 256


def recall_at_1(images_nd: torch.Tensor, texts_nd: torch.Tensor, captions: list[str]) -> float:
    """Recall@1 of n pairs, the mean of both directions, in [0, 1].

    A match with an equal caption is correct. The measure does not depend on the batch, the temperature or the loss.
    """
    numbers: dict[str, int] = {}
    caption_n = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
    scores_nn = images_nd @ texts_nd.T
    right = [(caption_n[scores_nn.argmax(dim=dim)] == caption_n).float().mean() for dim in (0, 1)]
    return float(torch.stack(right).mean())


class HeldOutMeasure:
    """Measures a run's model, and writes the results to the run's folder.

    `model` makes a separate copy of the model, to load weights into. `images` makes the input of images of a geometry.
    """

    def __init__(
        self,
        job: MeasureJob,
        folder: Location,
        model: Callable[[], Any],
        images: Callable[[ImageGeometry], ImageInput],
        device: torch.device,
    ) -> None:
        self._job = job
        self._folder = folder
        self._make_model = model
        self._make_images = images
        self._device = device
        self._curve = read_curve(folder)
        self._inputs: tuple[Any, torch.Tensor, torch.Tensor, list[str]] | None = None

    def measure(self, number: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Measure the model with these weights, as measurement `number`."""
        clip, images, tokens, captions = self._inputs or self._prepare()
        module = clip.module.eval().to(self._device)
        module.load_state_dict(weights)
        with torch.inference_mode():
            images_nd = self._in_parts(images, lambda part: module.encode_image(part, normalize=True))
            texts_nd = self._in_parts(tokens, lambda part: module.encode_text(part, normalize=True))
        self._curve[number] = recall_at_1(images_nd, texts_nd, captions)
        (self._folder / CURVE_FILE).write_text(json.dumps(self._curve))

    def _prepare(self) -> tuple[Any, torch.Tensor, torch.Tensor, list[str]]:
        clip = self._make_model()
        table = pq.read_table(io.BytesIO(self._job.pairs.read_bytes()))
        captions: list[str] = table["caption"].to_pylist()
        source = self._make_images(ImageGeometry.of_model(clip.config))
        resized = [
            source.prepare(image, f"{self._job.pairs}: row {row}")
            for row, image in enumerate(table["image"].to_pylist())
        ]
        images = [clip.eval_transform(Image.fromarray(pixels_hw3)) for pixels_hw3 in resized]
        self._inputs = (clip, torch.stack(images), clip.tokenizer(captions), captions)
        return self._inputs

    def _in_parts(self, inputs: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.cat(
            [encode(part.to(self._device)).float().cpu() for part in torch.split(inputs, _ENCODED_AT_ONCE)]
        )
