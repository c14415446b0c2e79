"""What `serve.py` and its peers share: a run of untrained experts, pictures, and the ensemble as a plain loop."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig
from mode_ray.embed.load import load_encoder
from mode_ray.evaluate.measure.similarities import zero_shot_classifier
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.models.encode import Expert
from mode_ray.pairs.images import decode_image
from mode_ray.routing.mix import ensemble_scores
from mode_ray.routing.router import expert_centers
from mode_ray.routing.weights import routing_weights
from mode_ray.run_directory import stage_directories
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.stages.manifest import Stage
from mode_ray.storage import Location

EXPERTS = 4
LABELS = ("cat", "dog", "bus", "train", "apple", "pear", "hammer", "saw")
# Mixed so that no expert has all the weight, and none is pruned unasked.
_TOPICS = (("a cat", "a bus"), ("a dog", "a train"), ("an apple", "a hammer"), ("a pear", "a saw"))
_PICTURE_PIXELS = (320, 240)


def build_run(folder: Path, architecture: str, experts: int = EXPERTS) -> ServedRun:
    """A run whose experts have random weights: what they say is of no matter here, only what it costs."""
    config = RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "captions": {"paths": [str(folder)]},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "cluster": {"sample_rows": 100, "fine": {"centers": 8}, "coarse": {"experts": [experts]}},
            "train": {"model": {"architecture": architecture}, "experts": experts, "dense_samples": 4096},
        }
    )
    places = stage_directories(config.directory)
    encoder = load_encoder(config.encoder, config.embed.encoder)
    Clustering(
        centers_md=encoder.encode([topic for topics in _TOPICS for topic in topics]),
        prices_m=np.zeros(8),
        mass_m=np.full(8, 10),
        squared_distance_m=np.ones(8),
        encoder_name=encoder.name,
        coarse={experts: (np.arange(8) * experts // 8).astype(np.int32)},
    ).save(places["cluster"])
    for expert in range(experts):
        clip = build_clip(ModelConfig(architecture=architecture, precision="float32"), seed=expert)
        save_clip(places["train"] / f"n{experts}/{expert:02d}", clip)
    for stage in ("cluster", "train"):
        Stage(stage, places[stage], {}).finish([], {})
    (config.directory / "config.yaml").write_text(dump_config(config))
    return ServedRun.load(Location.parse(str(folder / "run")))


def tiny_architecture(folder: Path) -> str:
    """An architecture of the size of the demo's towers: there the way to the model is what takes the time."""
    vision = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 96, "head_width": 32}
    text = {"context_length": 32, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 2}
    folder.mkdir()
    model = {"embed_dim": 96, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return str(folder)


def pictures(count: int) -> list[bytes]:
    """JPEGs of the size of a thumbnail on the web, smooth as photos are."""
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize(_PICTURE_PIXELS, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


class PlainEnsemble:
    """The ensemble in a Python loop over its experts: decode, prepare once, encode with each, mix."""

    def __init__(self, served: ServedRun, threads: int) -> None:
        torch.set_num_threads(threads)
        self._experts = [Expert(folder, "cpu") for folder in served.experts.values()]
        texts = [[template.replace("{}", label) for template in served.config.serve.templates] for label in LABELS]
        self._classes = [zero_shot_classifier(texts, expert.encode_texts) for expert in self._experts]
        self._weights_c = routing_weights(
            zero_shot_classifier(texts, served.load_encoder().encode),
            expert_centers(served.clustering, served.n),
            served.config.routing,
        ).weights_c

    def score(self, images: Sequence[bytes]) -> npt.NDArray[np.floating]:
        """Scores, [images, labels]."""
        decoded = [decode_image(data, 1 << 24, "image") for data in images]
        prepared = torch.stack([self._experts[0].prepare(image) for image in decoded])
        cosines = [
            expert.encode_images(prepared) @ classes.T
            for expert, classes in zip(self._experts, self._classes, strict=True)
        ]
        return ensemble_scores(np.stack(cosines), self._weights_c)
