"""Embedding captions with MiniLM is faster than the fastest backend of sentence-transformers, and Ray costs nothing.

Peers, on 4,000 real captions and as many threads as cores: `SentenceTransformer.encode` of the same folder and token
limit on every backend, each with its best batch size (`embed_peers.py`); and a bare loop of our own encoder without
Ray, over the same shards, to see what the embed stage costs (its time counts from the first unit's start to the
manifest). Ours computes with OpenVINO, in bfloat16 where the processor has instructions for it, else in float32; it
is measured with torch and in int8, too. What an arithmetic
changes is its cosine to the float32 embeddings, and the share of captions in the same of 1,024 clusters of 20,000
other captions. ONNX Runtime
and OpenVINO are not among our dependencies: MODE_RAY_PEER_PYTHON names the Python of an environment with
`sentence-transformers optimum-onnx optimum-intel onnxruntime openvino nncf`, or they are left out, and said so.

The static table, on 100,000 captions, against a plain loop: `encode_batch` and a numpy mean.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import tokenizers
import torch
from captions import STATIC_TABLE, TRANSFORMER, real_captions
from embed_peers import BACKENDS
from frame import alternate, arguments, finish
from safetensors.numpy import load_file

from mode_ray.captions.listing import list_work_units
from mode_ray.cluster.fit.kmeans import fit_fine
from mode_ray.cluster.search.nearest import NearestCenters
from mode_ray.config.base import ActorPool
from mode_ray.config.captions import CaptionsConfig, EmbedConfig, EncoderConfig, EncoderPlacement
from mode_ray.config.cluster import FineConfig
from mode_ray.config.run import RayConfig, RunConfig
from mode_ray.config.train import TrainConfig
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.embed.load import load_encoder
from mode_ray.embed.stage import EmbedWorker, run_embed
from mode_ray.embed.static import StaticEncoder
from mode_ray.stages.manifest import Stage, read_units, write_unit
from mode_ray.stages.run import Quiet, Run
from mode_ray.stages.session import ray_session
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.packages import resolve_folder

THREADS = len(os.sched_getaffinity(0))
BASE = "torch-float32"
"""The backend whose embeddings are the right ones."""
CAPTIONS_PER_SHARD = 1000


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices by instructions of its own; without, it is far slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def run_config(folder: Path, dtype: Literal["float32", "bfloat16"], paths: Sequence[str]) -> RunConfig:
    """The embed stage's config: one actor with all threads, as transformers on CPUs run best, and OpenVINO."""
    encoder = EncoderPlacement(runtime="openvino")
    return RunConfig(
        run=str(folder / "run"),
        captions=CaptionsConfig(paths=tuple(paths)),
        encoder=EncoderConfig(model=TRANSFORMER, max_tokens=256, dtype=dtype),
        embed=EmbedConfig(pool=ActorPool(min_actors=1, max_actors=1, threads_per_actor=THREADS), encoder=encoder),
        train=TrainConfig(dense_samples=1),
    )


def bare_loop(config: RunConfig, work_units: Sequence[WorkUnit], output: Location) -> float:
    """Our worker without Ray: read, encode and write shard by shard; returns its seconds, the model loaded before."""
    worker = EmbedWorker(config.captions, config.encoder, config.embed.encoder, THREADS, None, 0)
    began = time.perf_counter()
    for work_unit in work_units:
        table, record = worker.compute(work_unit, worker.read(work_unit))
        write_unit(output / f"{work_unit.unit}.parquet", table, record)
    return time.perf_counter() - began


def embed_stage(config: RunConfig, work_units: Sequence[WorkUnit]) -> float:
    """The stage; returns the seconds from the first unit's start to the manifest."""
    directory = config.directory / "embeddings"
    directory.delete()
    stage = Stage("embed", directory, {})
    run_embed(Run(config, work_units), stage, Quiet())
    return time.time() - min(unit.finished_unix_seconds - unit.seconds for unit in read_units(directory))


def plain_static(table_vd: np.ndarray, tokenizer: tokenizers.Tokenizer, captions: Sequence[str]) -> np.ndarray:
    """What one would write for a static table."""
    means = np.stack(
        [
            table_vd[encoding.ids].mean(axis=0) if encoding.ids else np.zeros(table_vd.shape[1], np.float32)
            for encoding in tokenizer.encode_batch(list(captions), add_special_tokens=False)
        ]
    )
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.where(norms > 0, norms, 1), np.float32)


def measure_static(captions: Sequence[str], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """The static table against the plain loop: results and seconds."""
    encoder = StaticEncoder(EncoderConfig(kind="static", model=STATIC_TABLE, max_tokens=64))
    folder = Path(resolve_folder(STATIC_TABLE, "model"))
    (weights,) = folder.rglob("*.safetensors")
    (table_vd,) = (tensor.astype(np.float32) for tensor in load_file(weights).values() if tensor.ndim == 2)
    tokenizer = tokenizers.Tokenizer.from_file(str(next(iter(sorted(folder.rglob("*tokenizer*.json"))))))
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    texts = list(captions)
    difference = np.abs(encoder.encode(texts[:2000]) - plain_static(table_vd, tokenizer, texts[:2000])).max()
    timings = alternate(
        lambda: encoder.encode(texts), {"plain": lambda: plain_static(table_vd, tokenizer, texts)}, repeats
    )
    seconds = timings.median_seconds
    results = {
        "static_vs_plain_loop": timings.speed_up("plain"),
        "static_captions_per_second": len(texts) / seconds["mode_ray"],
        "static_max_abs_difference": float(difference),
    }
    return results, seconds


class Backend:
    """A peer in a process of its own.

    Args:
        name: One of `BACKENDS`.
        python: The interpreter of its environment.
        folder: Has the captions as `captions.json`; the embeddings go there.
    """

    def __init__(self, name: str, python: str, folder: Path) -> None:
        self.name = name
        script, embeddings = Path(__file__).with_name("embed_peers.py"), folder / f"{name}.npy"
        self._process = subprocess.Popen(
            [python, script, name, resolve_folder(TRANSFORMER, "model"), folder / "captions.json", embeddings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.batch_size = int(self._answer())
        self.vectors = np.load(embeddings)

    def encode(self) -> float:
        """Encode all captions; returns the seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{self.name}: the process ended; run embed_peers.py by hand to see why")
        return line


@contextlib.contextmanager
def backends(captions: Sequence[str], folder: Path) -> Iterator[list[Backend]]:
    """All backends that can be had here."""
    (folder / "captions.json").write_text(json.dumps(captions))
    others = os.environ.get("MODE_RAY_PEER_PYTHON")
    found: list[Backend] = []
    try:
        for name in BACKENDS:
            if name.startswith("torch"):
                found.append(Backend(name, sys.executable, folder))
            elif others:
                found.append(Backend(name, others, folder))
            else:
                print(f"{name}: left out, MODE_RAY_PEER_PYTHON is not set")
        yield found
    finally:
        for backend in found:
            backend.close()


def fidelity(
    vectors: Mapping[str, np.ndarray], right_nd: np.ndarray, centers_md: np.ndarray
) -> dict[str, dict[str, float]]:
    """How far embeddings are from the right ones: the lowest and mean cosine, and the share in the same cluster."""
    search = NearestCenters(centers_md, None, THREADS)
    right_n, _ = search.search(right_nd)
    found = {}
    for name, vectors_nd in vectors.items():
        cosine_n = (vectors_nd * right_nd).sum(axis=1)
        same = search.search(vectors_nd)[0] == right_n
        found[name] = {
            "min_cosine": float(cosine_n.min()),
            "mean_cosine": float(cosine_n.mean()),
            "same_cluster_share": float(same.mean()),
        }
    return found


def _encode(encoder: CaptionEncoder, captions: list[str]) -> None:
    encoder.encode(captions)


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    count, static_count, fitted = (600, 10_000, 1_000) if options.quick else (4_000, 100_000, 20_000)
    centers = 32 if options.quick else 1_024
    repeats = options.repeats or (1 if options.quick else 5)
    torch.set_num_threads(THREADS)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    static, static_seconds = measure_static(real_captions(static_count), repeats)

    captions, others = (texts := real_captions(count + fitted))[:count], texts[count:]
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if has_bfloat16() else "float32"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = stack.enter_context(backends(captions, folder))
        for number, start in enumerate(range(0, count, CAPTIONS_PER_SHARD)):
            some = captions[start : start + CAPTIONS_PER_SHARD]
            Location(str(folder / "captions" / f"{number:03d}.parquet")).write_table(pa.table({"caption": some}))
        config = run_config(folder, dtype, [str(folder / "captions")])
        work_units = list_work_units(config.captions)
        encoder = load_encoder(config.encoder, config.embed.encoder, THREADS)
        # Further ways of ours: without OpenVINO, and with int8.
        int8 = EncoderConfig(model=TRANSFORMER, max_tokens=256, dtype="int8")
        own = {
            "mode_ray on torch": load_encoder(config.encoder, EncoderPlacement(), THREADS),
            "mode_ray int8": load_encoder(int8, EncoderPlacement(), THREADS),
        }
        vectors = {"mode_ray": encoder.encode(captions), **{peer.name: peer.vectors for peer in peers}}
        vectors |= {name: one.encode(captions) for name, one in own.items()}
        timings = alternate(
            lambda: encoder.encode(captions),
            {
                **{name: partial(_encode, one, captions) for name, one in own.items()},
                **{peer.name: peer.encode for peer in peers},
            },
            repeats,
            warm_up=False,
        )
        fine = fit_fine(encoder.encode(others), FineConfig(centers=centers, balanced=False), 0, THREADS)
        found = fidelity(vectors, vectors[BASE], fine.centers_md)
        batch_sizes = {peer.name: peer.batch_size for peer in peers}
        with ray_session(RayConfig(dashboard=False, object_store_bytes=300_000_000)):
            staged = alternate(
                lambda: embed_stage(config, work_units),
                {"own_bare_loop": lambda: bare_loop(config, work_units, Location(str(folder / "bare")))},
                repeats,
            )
    seconds = {**timings.median_seconds, "embed_stage": staged.median_seconds["mode_ray"]}
    seconds["own_bare_loop"] = staged.median_seconds["own_bare_loop"]
    print(f"{count:,} captions, MiniLM, {dtype}, {THREADS} threads")
    for name, value in seconds.items():
        figures = "  ".join(f"{key} {figure:.4f}" for key, figure in found.get(name, {}).items())
        print(f"  {name:24} {value:8.2f} s {count / value:10,.0f} captions/s  {figures}")
    print(f"{static_count:,} captions, static table")
    for name, value in static_seconds.items():
        print(f"  {name:24} {value:8.2f} s {static_count / value:10,.0f} captions/s")
    finish(
        "embed",
        {
            "captions_per_second_vs_fastest_backend": min(timings.speed_up(peer) for peer in batch_sizes),
            "captions_per_second_vs_sentence_transformers": timings.speed_up(BASE),
            **found["mode_ray"],
            "int8_captions_per_second_vs_fastest_backend": min(
                timings.median_seconds[peer] / timings.median_seconds["mode_ray int8"] for peer in batch_sizes
            ),
            **{f"int8_{name}": figure for name, figure in found["mode_ray int8"].items()},
            "vs_own_bare_loop": staged.speed_up("own_bare_loop"),
            **static,
        },
        {
            "captions": count,
            "dtype": dtype,
            "threads": THREADS,
            "batch_sizes": batch_sizes,
            "fidelity": found,
            "captions_per_second": {name: round(count / value, 1) for name, value in seconds.items()},
            "static_captions": static_count,
            "bfloat16_instructions": has_bfloat16(),
        },
    )


if __name__ == "__main__":
    main()
