"""Embedding captions with MiniLM is faster than sentence-transformers (target: twice), through Ray as fast as without.

Peers, on 4,000 real captions and as many threads as cores: `SentenceTransformer.encode` as it comes (PyTorch, float32,
its best batch size), of the same folder and token limit; and a bare loop of our own encoder without Ray, over the same
shards, to see what the embed stage costs (its time counts from the first unit's start to the manifest). Ours computes
in bfloat16 where the processor has instructions for it, else in float32; the cosine to the peer's embeddings says what
that changes. The static table, on 100,000 captions, against a plain loop: `encode_batch` and a numpy mean.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import tokenizers
import torch
from captions import STATIC_TABLE, TRANSFORMER, real_captions
from frame import alternate, arguments, finish
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from mode_ray.captions.listing import list_work_units
from mode_ray.config.base import ActorPool
from mode_ray.config.captions import CaptionsConfig, EmbedConfig, EncoderConfig, EncoderPlacement
from mode_ray.config.run import RayConfig, RunConfig
from mode_ray.config.train import TrainConfig
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
PEER_BATCH_SIZE = 32
CAPTIONS_PER_SHARD = 1000


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices by instructions of its own; without, it is far slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def run_config(folder: Path, dtype: Literal["float32", "bfloat16"], paths: Sequence[str]) -> RunConfig:
    """The embed stage's config: one actor with all threads, as transformers on CPUs run best."""
    return RunConfig(
        run=str(folder / "run"),
        captions=CaptionsConfig(paths=tuple(paths)),
        encoder=EncoderConfig(model=TRANSFORMER, max_tokens=256, dtype=dtype),
        embed=EmbedConfig(pool=ActorPool(min_actors=1, max_actors=1, threads_per_actor=THREADS)),
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


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    count, static_count = (300, 10_000) if options.quick else (4_000, 100_000)
    repeats = options.repeats or (1 if options.quick else 5)
    torch.set_num_threads(THREADS)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    static, static_seconds = measure_static(real_captions(static_count), repeats)

    captions = real_captions(count)
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if has_bfloat16() else "float32"
    peer = SentenceTransformer(resolve_folder(TRANSFORMER, "model"), device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number, start in enumerate(range(0, count, CAPTIONS_PER_SHARD)):
            some = captions[start : start + CAPTIONS_PER_SHARD]
            Location(str(folder / "captions" / f"{number:03d}.parquet")).write_table(pa.table({"caption": some}))
        config = run_config(folder, dtype, [str(folder / "captions")])
        work_units = list_work_units(config.captions)
        encoder = load_encoder(config.encoder, EncoderPlacement(), THREADS)
        vectors = encoder.encode(captions)
        theirs = peer.encode(captions, batch_size=PEER_BATCH_SIZE, normalize_embeddings=True)
        cosine = (vectors * theirs).sum(axis=1)
        timings = alternate(
            lambda: encoder.encode(captions),
            {"sentence_transformers": lambda: peer.encode(captions, batch_size=PEER_BATCH_SIZE)},
            repeats,
        )
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
        print(f"  {name:24} {value:8.2f} s {count / value:10,.0f} captions/s")
    print(f"{static_count:,} captions, static table")
    for name, value in static_seconds.items():
        print(f"  {name:24} {value:8.2f} s {static_count / value:10,.0f} captions/s")
    finish(
        "embed",
        {
            "captions_per_second_vs_sentence_transformers": timings.speed_up("sentence_transformers"),
            "min_cosine": float(cosine.min()),
            "vs_own_bare_loop": staged.speed_up("own_bare_loop"),
            **static,
        },
        {
            "captions": count,
            "dtype": dtype,
            "threads": THREADS,
            "captions_per_second": {name: round(count / value, 1) for name, value in seconds.items()},
            "static_captions": static_count,
            "bfloat16_instructions": has_bfloat16(),
        },
    )


if __name__ == "__main__":
    main()
