"""Evaluating 8 experts takes at most 1.05 times one decoding of the images and 8 forward passes.

Peer: the same models on the same files in a bare loop: read, decode and prepare every image once, then each model on
every batch and on the class texts, cosines kept in memory. Ours also counts and checks the samples, embeds the texts
for routing (with an encoder that costs nothing here) and stores every model's cosines. Both load the models, which is
timed apart. Models of random weights: speed does not hang on what they learned.
"""

import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from frame import alternate, arguments, finish
from PIL import Image

from mode_ray.config.evaluate import EvaluatePlacement
from mode_ray.config.train import ModelConfig
from mode_ray.evaluate.measure.known_images import KnownImages
from mode_ray.evaluate.measure.measurements import load_cosines
from mode_ray.evaluate.measure.options import MeasureOptions
from mode_ray.evaluate.measure.similarities import measure_task
from mode_ray.evaluate.tasks.task import Task
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.models.together import load_experts
from mode_ray.storage import Location

EXPERTS = 8
CLASSES = tuple(f"shape {number}" for number in range(20))
TEMPLATES = ("a photo of a {}.", "{}")
SIDE_PIXELS = 256
BATCH = 64
THREADS = 2
DEMO_TOWER = "package:mode_ray/presets/demo-vit"


class AnyText:
    """A caption encoder that knows every text and takes no time."""

    name, dimension = "any", 2

    def encode(self, captions: list[str]) -> np.ndarray:
        """The same unit row for all."""
        return np.tile(np.array([1.0, 0.0], np.float32), (len(captions), 1))


def write_images(file: Path, count: int) -> None:
    """JPEG files of smooth shapes, as hard to decode as photographs of their size."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 24, 3), np.uint8))
        buffer = BytesIO()
        coarse.resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    labels = [CLASSES[number % len(CLASSES)] for number in range(count)]
    pq.write_table(pa.table({"image": images, "label": labels}), file)


class BareLoop:
    """One decoding and a forward pass a model.

    Args:
        folders: Of the models.
        file: The images.
    """

    def __init__(self, folders: Sequence[Path], file: Path) -> None:
        self._folders, self._file = folders, file
        self.cosines_cil: npt.NDArray[np.float32] = np.empty((0, 0, 0), np.float32)
        self.seconds: dict[str, float] = {}

    @torch.inference_mode()
    def run(self) -> float:
        """Seconds without loading the models."""
        torch.set_num_threads(THREADS)
        names = [f"local-dir:{folder}" for folder in self._folders]
        loaded: list[Any] = [open_clip.create_model_and_transforms(name) for name in names]
        models, transform = [model.eval() for model, _, _ in loaded], loaded[0][2]
        tokenizer = open_clip.get_tokenizer(names[0])
        began = time.perf_counter()
        texts = [template.format(name) for name in CLASSES for template in TEMPLATES]
        classes_ld = []
        for model in models:
            each_td = model.encode_text(tokenizer(texts), normalize=True)
            mean_ld = each_td.reshape(len(CLASSES), len(TEMPLATES), -1).mean(dim=1)
            classes_ld.append(torch.nn.functional.normalize(mean_ld, dim=-1))
        decoded, parts, spent = 0.0, [], time.perf_counter()
        for rows in pq.ParquetFile(self._file).iter_batches(BATCH, columns=["image"]):
            pictures = [Image.open(BytesIO(data)).convert("RGB") for data in rows["image"].to_pylist()]
            images_b3hw = torch.stack([transform(picture) for picture in pictures])
            decoded += time.perf_counter() - spent
            parts.append(
                torch.stack(
                    [
                        model.encode_image(images_b3hw, normalize=True) @ texts_ld.T
                        for model, texts_ld in zip(models, classes_ld, strict=True)
                    ]
                )
            )
            spent = time.perf_counter()
        self.cosines_cil = torch.cat(parts, dim=1).numpy()
        whole = time.perf_counter() - began
        self.seconds = {"decoding": decoded, "forward_passes": whole - decoded}
        return whole


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    count, repeats = (384, 2) if options.quick else (2048, 5)
    repeats = options.repeats or repeats
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder / "images.parquet", count)
        folders = [folder / f"n{EXPERTS}" / f"{expert:02d}" for expert in range(EXPERTS)]
        for expert, place in enumerate(folders):
            clip = build_clip(ModelConfig(architecture=DEMO_TOWER, precision="float32"), seed=expert)
            save_clip(Location(str(place)), clip)
        models = {f"n{EXPERTS}/{place.name}": Location(str(place)) for place in folders}
        task = Task(
            name="shapes",
            kind="classification",
            paths=(str(folder / "images.parquet"),),
            classes=CLASSES,
            templates=TEMPLATES,
        )
        experts = load_experts(models)
        target, bare = Location(str(folder / "measured")), BareLoop(folders, folder / "images.parquet")
        placement = EvaluatePlacement(batch_size=BATCH, threads_per_task=THREADS)

        def ours() -> float:
            began = time.perf_counter()
            measure_task(task, KnownImages(experts), AnyText(), target, MeasureOptions(placement))
            return time.perf_counter() - began

        timings = alternate(ours, {"bare_loop": bare.run}, repeats)
        found = load_cosines(target)
        ours_cil = np.stack([found.cosines[name] for name in models])
    for name, seconds in timings.median_seconds.items():
        print(f"{name:12} {seconds:8.2f} s for {count} images and {EXPERTS} experts")
    print(f"of the bare loop: {bare.seconds['decoding']:.2f} s decoding")
    finish(
        "evaluate",
        {
            "time_vs_one_decoding_and_8_forward_passes": 1.0 / timings.speed_up("bare_loop"),
            "max_abs_difference": float(np.abs(ours_cil - bare.cosines_cil).max()),
        },
        {
            "images": count,
            "side_pixels": SIDE_PIXELS,
            "threads": THREADS,
            "rounds": repeats,
            "seconds": timings.seconds,
            "bare_loop_seconds": bare.seconds,
        },
    )


if __name__ == "__main__":
    main()
