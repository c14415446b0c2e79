"""Four experts on one trunk keep at least 0.85 of the speed of a single model, in at most 1.3 times its memory.

Peers: one dense model of the same architecture, and four experts with trunks of their own (target: three times their
speed). In process, the models encode the same prepared images; over HTTP, `mode-ray serve --in-process` answers
requests of 32 JPEGs; on Ray Serve, one application with all heads is compared with one application per expert. Experts
on one trunk are stored as whole models, and loading finds that their trunks are equal. Weights are random: what an
image costs does not depend on them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from frame import OURS, alternate, arguments, finish
from serve import IMAGES, THREADS, Batch, in_process, on_ray_serve, register
from serve_run import EXPERTS, LABELS, build_run, pictures, tiny_architecture

from mode_ray.config.train import ModelConfig
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.models.together import encode_images, encode_texts, load_experts
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location

ARCHITECTURE = "ViT-B-32"
_HEADS = ("visual.proj", "text_projection")
# No expert is left out of an answer, also on a machine that is busy with something else.
_EVERYBODY = {"pruning.share": 1.0, "expert_deadline_seconds": 120.0, "request_deadline_seconds": 240.0}


@dataclass(frozen=True)
class Runs:
    """Three runs of the same architecture.

    Attributes:
        shared: Experts with one trunk.
        whole: Experts with trunks of their own.
        dense: The first expert alone.
    """

    shared: ServedRun
    whole: ServedRun
    dense: ServedRun

    @property
    def by_name(self) -> Mapping[str, ServedRun]:
        """By name."""
        return {"shared": self.shared, "whole": self.whole, "dense": self.dense}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--load", metavar="RUN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(loaded_bytes(options.load))
        return
    rounds = options.repeats or (2 if options.quick else 7)
    with tempfile.TemporaryDirectory(prefix="mode-ray-trunk-") as name:
        folder = Path(name)
        architecture = tiny_architecture(folder / "tiny") if options.quick else ARCHITECTURE
        runs = build_runs(folder, architecture)
        difference = max_abs_difference(runs.shared)
        memory = {name: _in_new_process(run) for name, run in runs.by_name.items()}
        process = measure(runs, in_one_process, rounds)
        http = measure_http(runs, rounds)
        layouts = {} if options.quick else {"ray_together_vs_apart_throughput": measure_layouts(runs.shared, rounds)}
    results = {
        "shared_vs_dense_throughput": min(process["dense"], http["dense"]),
        "shared_vs_dense_memory": memory["shared"] / memory["dense"],
        "shared_vs_whole_throughput": min(process["whole"], http["whole"]),
        "max_abs_difference": difference,
        **layouts,
    }
    for way, speeds in (("in_process", process), ("http", http)):
        results |= {f"{way}_shared_vs_{peer}_throughput": speed for peer, speed in speeds.items()}
    details = {
        "architecture": "tiny" if options.quick else ARCHITECTURE,
        "experts": EXPERTS,
        "images": IMAGES,
        "torch_threads": THREADS,
        "rounds": rounds,
        "resident_bytes_of_models": memory,
    }
    finish("shared_trunk", results, details)


def build_runs(folder: Path, architecture: str) -> Runs:
    """The runs; experts on one trunk differ in their projections, as with `train.model.lock`."""
    for name in ("shared", "whole", "dense"):
        (folder / name).mkdir()
    shared, whole = (build_run(folder / name, architecture) for name in ("shared", "whole"))
    clip = build_clip(ModelConfig(architecture=architecture, precision="float32"), seed=0)
    for number, place in shared.experts.items():
        torch.manual_seed(number)
        state = {
            name: torch.randn_like(tensor) * tensor.std() if name in _HEADS else tensor
            for name, tensor in clip.module.state_dict().items()
        }
        save_clip(place, clip, state)
    return Runs(shared, whole, build_run(folder / "dense", architecture, experts=1))


def in_one_process(run: ServedRun) -> Callable[[], object]:
    """Encodes prepared images with all experts of a run."""
    experts = list(load_experts(run.experts, "cpu", threads=THREADS).values())
    images_b3hw = torch.randn(IMAGES, 3, *experts[0].image_size, generator=torch.Generator().manual_seed(0))
    return lambda: encode_images(experts, images_b3hw)


def measure(runs: Runs, make: Callable[[ServedRun], Callable[[], object]], rounds: int) -> dict[str, float]:
    """Images a second of the shared trunk over those of both peers."""
    timings = alternate(make(runs.shared), {"dense": make(runs.dense), "whole": make(runs.whole)}, rounds)
    return {peer: timings.speed_up(peer) for peer in ("dense", "whole")}


def measure_http(runs: Runs, rounds: int) -> dict[str, float]:
    """The same over HTTP, all three services up and one asked at a time."""
    images = pictures(IMAGES)
    with (
        in_process(runs.shared, _EVERYBODY) as shared,
        in_process(runs.dense, _EVERYBODY) as dense,
        in_process(runs.whole, _EVERYBODY) as whole,
    ):
        asks = {url: Batch(url, register(url), images) for url in (shared, dense, whole)}
        timings = alternate(asks[shared], {"dense": asks[dense], "whole": asks[whole]}, rounds)
    return {peer: timings.speed_up(peer) for peer in ("dense", "whole")}


def measure_layouts(run: ServedRun, rounds: int) -> float:
    """On Ray Serve: images a second of one application with all heads over those of an application per expert.

    Both use as many torch threads as there are cores: the one application has them all.
    """
    images = pictures(IMAGES)
    together = {"experts_per_replica": run.n, "threads_per_expert": THREADS}
    seconds = {}
    for layout, settings in (("together", together), ("apart", {"experts_per_replica": 1})):
        # One after the other: two clusters on one machine would take each other's cores.
        with on_ray_serve(run, {**_EVERYBODY, **settings}) as url:
            ask = Batch(url, register(url), images)
            seconds[layout] = alternate(ask, {}, rounds).median_seconds[OURS]
    return seconds["apart"] / seconds["together"]


def max_abs_difference(run: ServedRun) -> float:
    """Of image and text embeddings from those of the same folders in plain open_clip."""
    experts = list(load_experts(run.experts, "cpu", threads=THREADS).values())
    images_b3hw = torch.randn(8, 3, *experts[0].image_size, generator=torch.Generator().manual_seed(1))
    sides = zip(encode_images(experts, images_b3hw), encode_texts(experts, LABELS), strict=True)
    found = 0.0
    for place, (images_bd, texts_ld) in zip(run.experts.values(), sides, strict=True):
        name = f"local-dir:{place.path}"
        model: Any = open_clip.create_model_and_transforms(name)[0].eval()
        with torch.inference_mode():
            plain = [
                model.encode_image(images_b3hw, normalize=True),
                model.encode_text(open_clip.get_tokenizer(name)(list(LABELS)), normalize=True),
            ]
        pairs = zip((images_bd, texts_ld), plain, strict=True)
        found = max(found, *(float(np.abs(ours - theirs.numpy()).max()) for ours, theirs in pairs))
    return found


def loaded_bytes(run: str) -> int:
    """Private memory that the models of a run take in this process, after one pass."""
    import psutil

    served = ServedRun.load(Location.parse(run))
    before = psutil.Process().memory_full_info().uss
    experts = list(load_experts(served.experts, "cpu", threads=THREADS).values())
    encode_images(experts, torch.zeros(1, 3, *experts[0].image_size))
    return int(psutil.Process().memory_full_info().uss - before)


def _in_new_process(run: ServedRun) -> int:
    command: Sequence[str] = [sys.executable, __file__, "--load", run.run.uri]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(ended.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
