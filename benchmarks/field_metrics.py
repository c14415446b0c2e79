"""Zero-shot and retrieval metrics are those of clip-benchmark to 1e-4, on the same model, data and templates.

Peer: `clip_benchmark eval --no_amp` of the released package, in a process of its own with a copy of it beside the
project's packages. The tasks are written once in the layout of its published sets, images and captions as they are in
their files; both sides read that. Of the demo's held-out pairs by default; `--tasks` takes any task files.

The model is an expert folder (`--model`), or a small one that is fitted to some of the images for seconds: random
weights give nearly equal scores, whose order hangs on the last bit. No ratio of times: clip-benchmark spends its time
starting.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from frame import arguments, finish

from mode_ray.config.evaluate import EvaluatePlacement
from mode_ray.config.images import ImagesConfig
from mode_ray.config.train import ModelConfig
from mode_ray.evaluate.measure.known_images import KnownImages
from mode_ray.evaluate.measure.measurements import load_cosines
from mode_ray.evaluate.measure.options import MeasureOptions
from mode_ray.evaluate.measure.similarities import measure_task
from mode_ray.evaluate.metrics.score import measure
from mode_ray.evaluate.tasks.benchmark_layout import (
    CLASS_NAMES_FILE,
    MEMBERS,
    SHARD_COUNT_FILE,
    TEMPLATES_FILE,
    TYPE_FILE,
)
from mode_ray.evaluate.tasks.samples import read_samples
from mode_ray.evaluate.tasks.task import Task, load_task
from mode_ray.evaluate.tasks.usable_samples import UsableSamples, prepared_image
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.models.together import load_experts
from mode_ray.pairs.images import Pixels, decode_image, decode_pixels
from mode_ray.storage import Location

# Without what they depend on: the project has that already, torch above all. A numpy of its own, since clip-benchmark
# takes arrays of one number for numbers, which newer ones refuse.
PEER_PACKAGES = ("clip-benchmark==1.6.2", "pycocoevalcap==1.2", "pycocotools==2.0.11", "numpy==2.3.5")
TOLERANCE = 1e-4
MAX_PIXELS = 64_000_000
PLAIN = ImagesConfig(decoding="open_clip")
"""Images decoded as by clip-benchmark."""
BATCH = 64
FITTED_PAIRS = 512
THREADS = len(os.sched_getaffinity(0))
DEMO_TOWER = "package:mode_ray/presets/demo-vit"
NAMES = {
    "acc1": "top1",
    "acc5": "top5",
    "mean_per_class_recall": "mean_per_class",
    "mean_average_precision": "mean_average_precision",
    **{f"image_retrieval_recall@{rank}": f"text_to_image_r{rank}" for rank in (1, 5, 10)},
    **{f"text_retrieval_recall@{rank}": f"image_to_text_r{rank}" for rank in (1, 5, 10)},
}
"""clip-benchmark's names of metrics, and ours."""
MODES = {"zeroshot_classification": ("classification", "multilabel"), "zeroshot_retrieval": ("retrieval",)}
"""clip-benchmark's modes, and the kinds of tasks that each measures."""


class AnyText:
    """A caption encoder that knows every text: nothing is routed here, and no caption is to be left out."""

    name, dimension = "any", 2

    def encode(self, captions: list[str]) -> np.ndarray:
        """The same unit row for all."""
        return np.tile(np.array([1.0, 0.0], np.float32), (len(captions), 1))


def export(task: Task, root: Path, images: int | None) -> tuple[Task, list[tuple[bytes, str]]]:
    """Write a task's first usable images in clip-benchmark's layout.

    Of a retrieval task, images with a caption that an earlier one has are left out: to clip-benchmark an equal caption
    is a wrong answer and its rank among its equals is left to a sort, to us it is right.

    Returns:
        The task as it is there, and its images, each with a text that it may be fitted to.
    """
    usable, kept = UsableSamples(task), []

    def decode(data: bytes, place: str) -> Pixels:
        return decode_pixels(data, MAX_PIXELS, place, PLAIN)

    captions: set[str] = set()
    for sample in read_samples(task):
        if task.kind == "retrieval" and sample.texts is not None:
            if captions.intersection(sample.texts):
                continue
            captions.update(sample.texts)
        if usable.take(sample, prepared_image(sample, decode)) is not None and sample.image is not None:
            kept.append(sample.image)
        if images is not None and usable.images == images:
            break
    test = root / task.name / "test"
    test.mkdir(parents=True)
    shown = _shown(task, usable)
    with tarfile.open(test / "0.tar", "w") as archive:
        for number, (image, content) in enumerate(zip(kept, shown, strict=True)):
            suffix = "png" if image.startswith(b"\x89PNG") else "jpg"
            for ending, data in ((suffix, image), (MEMBERS[task.kind], content)):
                member = tarfile.TarInfo(f"s{number:07d}.{ending}")
                member.size = len(data)
                archive.addfile(member, BytesIO(data))
    (test / SHARD_COUNT_FILE).write_text("1")
    (test.parent / TYPE_FILE).write_text(task.kind)
    if task.kind != "retrieval":
        (test.parent / CLASS_NAMES_FILE).write_text("\n".join(task.names()) + "\n")
        templates = [template.replace("{}", "{c}") for template in task.templates]
        (test.parent / TEMPLATES_FILE).write_text("\n".join(templates) + "\n")
    file = root / f"{task.name}.yaml"
    layout = {"name": task.name, "kind": task.kind, "format": "clip-benchmark", "paths": [str(test.parent)]}
    file.write_text(yaml.safe_dump(layout))
    texts = [_text_of(task, content) for content in shown]
    return load_task(str(file)), list(zip(kept, texts, strict=True))


def _shown(task: Task, usable: UsableSamples) -> list[bytes]:
    """What the image's second member says, image by image."""
    labels = usable.labels()
    if task.kind == "classification":
        return [str(label).encode() for label in labels.tolist()]
    if task.kind == "multilabel":
        contents = []
        for row_l in labels:
            buffer = BytesIO()
            np.save(buffer, row_l.astype(np.int64), allow_pickle=False)
            contents.append(buffer.getvalue())
        return contents
    captions: list[list[str]] = [[] for _ in range(usable.images)]
    for image, caption in zip(labels.tolist(), usable.captions, strict=True):
        captions[image].append(" ".join(caption.split()))
    return ["\n".join(own).encode() for own in captions]


def _text_of(task: Task, content: bytes) -> str:
    if task.kind == "retrieval":
        return content.decode().split("\n")[0]
    return task.names()[int(content)] if task.kind == "classification" else task.name


def fitted_model(folder: Path, pairs: Sequence[tuple[bytes, str]], steps: int) -> Location:
    """A small model with some contrast between its scores."""
    clip = build_clip(ModelConfig(architecture=DEMO_TOWER, precision="float32"), seed=0)
    module: Any = clip.module
    loss = open_clip.ClipLoss()
    images_n3hw = torch.stack([clip.eval_transform(decode_image(image, MAX_PIXELS, "", PLAIN)) for image, _ in pairs])
    tokens_nt = clip.tokenizer([text for _, text in pairs])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randperm(len(pairs), generator=generator)[:BATCH]
        images_bd = module.encode_image(images_n3hw[chosen], normalize=True)
        texts_bd = module.encode_text(tokens_nt[chosen], normalize=True)
        optimizer.zero_grad()
        loss(images_bd, texts_bd, module.logit_scale.exp()).backward()
        optimizer.step()
    target = Location(str(folder))
    save_clip(target, clip)
    return target


def ours(task: Task, model: Location, folder: Path) -> Mapping[str, float]:
    """The metrics of our evaluation."""
    target = Location(str(folder / task.name))
    placement = EvaluatePlacement(batch_size=BATCH, threads_per_task=THREADS)
    measure_task(
        task, KnownImages(load_experts({"model": model})), AnyText(), target, MeasureOptions(placement, PLAIN)
    )
    measured = load_cosines(target)
    if measured.summary.skipped:
        raise RuntimeError(f"{task.name}: {measured.summary.skipped} of the layout's samples were left out")
    return measure(measured.scored(task, measured.cosines["model"]))


def theirs(names: Sequence[str], mode: str, sets: Path, model: Location, side: Path) -> dict[str, dict[str, float]]:
    """The metrics of clip-benchmark by set, under our names, all of one of its modes."""
    command = [
        *(sys.executable, "-m", "clip_benchmark.cli", "eval", "--dataset", *(f"wds/{name}" for name in names)),
        *("--dataset_root", f"{sets}/{{dataset}}", "--model", f"local-dir:{model.path}", "--pretrained", ""),
        *("--task", mode, "--recall_k", "1", "5", "10", "--no_amp", "--num_workers", "0", "--batch_size", str(BATCH)),
        *("--output", f"{side}/{{dataset}}.json", "--quiet"),
    ]
    environment = os.environ | {"PYTHONPATH": str(side), "OMP_NUM_THREADS": str(THREADS), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, cwd=side, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"clip_benchmark failed on {', '.join(names)}:\n{done.stderr[-3000:]}")
    found = {name: json.loads((side / f"{name}.json").read_text())["metrics"] for name in names}
    return {
        name: {NAMES[metric]: value for metric, value in metrics.items() if not math.isnan(value)}
        for name, metrics in found.items()
    }


def demo_tasks(folder: Path, limit: int | None) -> list[str]:
    """The demo's task files, over pairs that it holds out."""
    from mode_ray.demo.build import build_demo_data

    return [file.path for file in build_demo_data(Location(str(folder)), limit=limit).task_files]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", nargs="+", help="task files (default: the demo's)")
    parser.add_argument("--model", help="an expert folder (default: a small model, fitted for seconds)")
    parser.add_argument("--images", type=int, help="at most so many of each task (default: all; --quick: 300)")
    options: argparse.Namespace = parser.parse_args()
    images = options.images or (300 if options.quick else None)
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as scratch:
        folder, side = Path(scratch), Path(scratch) / "clip-benchmark"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(side), *PEER_PACKAGES],
            check=True,
        )
        files = options.tasks or demo_tasks(folder / "demo", 600 if options.quick else None)
        exported = [export(load_task(file), folder / "sets", images) for file in files]
        if options.model:
            model = Location(str(Path(options.model).resolve()))
        else:
            pairs = [pair for _, own in exported for pair in own[: FITTED_PAIRS // len(exported)]]
            model = fitted_model(folder / "model", pairs, 30 if options.quick else 150)
        expected: dict[str, dict[str, float]] = {}
        for mode, kinds in MODES.items():
            names = [task.name for task, _ in exported if task.kind in kinds]
            expected |= theirs(names, mode, folder / "sets", model, side) if names else {}
        largest, compared = 0.0, {}
        for task, own in exported:
            found, peer = ours(task, model, folder / "measured"), expected[task.name]
            both = [name for name in peer if name in found]
            print(f"{task.name}: {len(own)} images")
            for name in both:
                largest = max(largest, abs(found[name] - peer[name]))
                print(f"  {name:22} ours {found[name]:.6f}  clip-benchmark {peer[name]:.6f}")
            compared[task.name] = {"images": len(own), **{name: [found[name], peer[name]] for name in both}}
    finish(
        "field_metrics",
        {
            "max_abs_difference": largest,
            "tasks": len(compared),
            "metrics": sum(len(own) - 1 for own in compared.values()),
        },
        {"peer": PEER_PACKAGES[0], "metrics": compared, "model": options.model or "fitted here"},
    )
    if largest > TOLERANCE:
        sys.exit(f"the metrics differ by {largest:.2g}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
