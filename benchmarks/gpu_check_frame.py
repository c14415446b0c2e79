"""What the checks of gpu_check.py share: marks, clocks, and synthetic models and pairs."""

import io
import json
import math
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from mode_ray.captions.read import read_captions
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig
from mode_ray.models.clip import ClipModel, build_clip
from mode_ray.pairs.index import PairIndex, index_columns, index_rows
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.train.data import PairDataset
from mode_ray.train.step.batch import TextPreparation

WORDS = (
    *("a", "photo", "of", "the", "red", "blue", "small", "old", "dog", "cat", "house", "tree", "under", "on"),
    *("beside", "with", "sea", "sky", "stone", "bridge"),
)


@dataclass(frozen=True)
class Context:
    """What a check gets: the device, whether it must be small, and a folder of its own."""

    device: torch.device
    quick: bool
    folder: Path

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def size(self, whole: int, quick: int) -> int:
        """A size for this context."""
        return quick if self.quick else whole

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """Mean seconds of some calls, after one that is not measured."""
        work()
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.wait()
        return (time.perf_counter() - began) / repeats


@dataclass
class Marks:
    """Figures of a check, and which of them missed their marks.

    Attributes:
        judges_speed: Whether marks of speed count; they are for GPUs.
        figures: Any figures, by name.
        failures: One sentence for each missed mark.
    """

    judges_speed: bool
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _judged: int = 0

    @property
    def status(self) -> str:
        """`pass`, `fail`, or `skipped: needs CUDA` if no mark could be judged."""
        if self.failures:
            return "fail"
        return "pass" if self._judged else "skipped: needs CUDA"

    def note(self, name: str, value: object) -> None:
        """Report a figure without a mark."""
        self.figures[name] = round(value, 6) if isinstance(value, float) else value

    def at_least(self, name: str, value: float, mark: float, *, speed: bool = False) -> None:
        """A figure that must reach a mark."""
        self._judge(name, value, value >= mark, f"{name} is {value:.6g}, below {mark:g}", speed=speed)

    def at_most(self, name: str, value: float, mark: float, *, speed: bool = False) -> None:
        """A figure that must not exceed a mark."""
        self._judge(name, value, value <= mark, f"{name} is {value:.6g}, above {mark:g}", speed=speed)

    def holds(self, name: str, fact: bool, otherwise: str) -> None:
        """A fact that must hold."""
        self._judge(name, float(fact), fact, otherwise, speed=False)

    def _judge(self, name: str, value: float, is_met: bool, otherwise: str, *, speed: bool) -> None:
        self.note(name, value if math.isfinite(value) else str(value))
        if speed and not self.judges_speed:
            return
        self._judged += 1
        if not is_met:
            self.failures.append(otherwise)


def small_tower(folder: Path, context_length: int = 77) -> str:
    """The folder of a small architecture; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 16},
        "text_cfg": {"context_length": context_length, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return str(folder)


def run_config(folder: Path, architecture: str, batch: int, steps: int, **train: Any) -> RunConfig:  # noqa: ANN401
    """The config of a run of so many steps; `train` are further fields of its train section."""
    model = {"architecture": architecture, "precision": train.pop("precision", "bfloat16")}
    fields = {
        "model": model,
        "batch_size": batch,
        "dense_samples": batch * steps,
        "optimizer": {"learning_rate": 1e-4, "warmup_samples": batch},
        **train,
    }
    return RunConfig.model_validate(
        {"run": str(folder / "run"), "captions": {"paths": [str(folder)]}, "train": fields}
    )


def built(config: RunConfig) -> ClipModel:
    """The model of a config with random weights."""
    train: Any = config.train
    model = ModelConfig.model_validate(train.model.model_dump())
    return build_clip(model, seed=0, logit_bias=train.loss.kind == "siglip")


def write_pairs(folder: Path, pairs: int, pixels: int, distinct: int = 64) -> list[WorkUnit]:
    """Pairs in WebDataset tars: JPEGs with the spectrum of photos, and captions of 1 to 40 words, some of them equal.

    `distinct` is the number of different images.
    """
    rng = np.random.default_rng(0)
    images = [_jpeg(rng, pixels) for _ in range(min(distinct, pairs))]
    units, per_tar = [], max(1, -(-pairs // 4))
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, pairs, per_tar)):
        path = folder / f"{number:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for place in range(first, min(first + per_tar, pairs)):
                words = rng.choice(WORDS, int(rng.integers(1, 41)))
                caption = "the same caption" if place % 16 == 0 else " ".join(words)
                for suffix, content in (("jpg", images[place % len(images)]), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{place:08d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        units.append(WorkUnit(unit=path.stem, uri=str(path), format="webdataset", size_bytes=path.stat().st_size))
    return units


def _jpeg(rng: np.random.Generator, pixels: int) -> bytes:
    """A JPEG of noise whose amplitude falls with the frequency, like that of photos: about 1.3 bits a pixel."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(pixels), np.fft.fftfreq(pixels)))
    spectrum = np.fft.fft2(rng.normal(size=(3, pixels, pixels))) / np.maximum(frequency, 1.0 / pixels)
    waves = np.fft.ifft2(spectrum).real
    scaled = 128 + 48 * waves / waves.std(axis=(1, 2), keepdims=True)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def dataset(
    units: list[WorkUnit], config: RunConfig, clip: ClipModel, prepare: TextPreparation | None = None
) -> PairDataset:
    """The training path over the pairs of some tars; `prepare` groups the captions in the loader."""
    schema = index_columns(tars=True)
    tables = [
        index_rows(read_captions(unit, config.captions).table, number, schema) for number, unit in enumerate(units)
    ]
    index = PairIndex.of(units, pa.concat_tables(tables))
    return PairDataset(index, config, clip, seed=0, prepare=prepare)
