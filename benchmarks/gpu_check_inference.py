"""Checks of gpu_check.py: nearest centers, the fit of the clustering, the caption encoder, experts in use."""

import os
import time

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import transformers
from gpu_check_frame import WORDS, Context, Marks, built, run_config, small_tower

from mode_ray.cluster.fit.device_rows import DeviceRows
from mode_ray.cluster.fit.kmeans import FineFit, fit_rows
from mode_ray.cluster.fit.sample_rows import LocalRows, SampleRows
from mode_ray.cluster.search.dense import DenseSearch
from mode_ray.cluster.search.nearest import NearestCenters
from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.config.cluster import FineConfig
from mode_ray.embed.huggingface import HuggingFaceEncoder
from mode_ray.models.clip import save_clip
from mode_ray.models.encode import Expert, Precision
from mode_ray.storage import Location

_DIMENSION = 384
_FIT_THREADS = 2


def unit_rows(rows: int, around_md: npt.NDArray[np.float32] | None = None, seed: int = 0) -> npt.NDArray[np.float16]:
    """Unit rows in float16, around centers or uniform on the sphere."""
    rng = np.random.default_rng(seed)
    rows_nd = rng.standard_normal((rows, _DIMENSION), np.float32)
    if around_md is not None:
        rows_nd = around_md[rng.integers(0, len(around_md), rows)] + 0.8 * rows_nd / np.float32(_DIMENSION**0.5)
    halves: npt.NDArray[np.float16] = (rows_nd / np.linalg.norm(rows_nd, axis=1, keepdims=True)).astype(np.float16)
    return halves


def check_search(context: Context, marks: Marks) -> None:
    """Nearest centers: ids and distances as on CPUs, for many and very many centers; rows a second."""
    threads = len(os.sched_getaffinity(0))
    for m, rows, compared in (
        (context.size(1_024, 256), context.size(1_000_000, 4_000), context.size(100_000, 4_000)),
        (context.size(65_536, 512), context.size(100_000, 1_000), context.size(10_000, 1_000)),
    ):
        centers_md = unit_rows(m, seed=1).astype(np.float32)
        centers_md[m // 2] = centers_md[0]  # a tie
        vectors_nd = unit_rows(rows, centers_md)
        vectors_nd[:8] = centers_md[0]
        fine, squared = NearestCenters(centers_md, None, threads).search(vectors_nd[:compared])
        search = DenseSearch(centers_md, None, context.device)
        dense_fine, dense_squared = search.search(vectors_nd[:compared])
        marks.at_least(f"equal_ids_{m}", float((dense_fine == fine).mean()), 0.9999)
        marks.holds(f"ties_{m}", bool((dense_fine[:8] == 0).all()), "a tie does not go to the lowest id")
        marks.at_most(f"distance_error_{m}", float(np.abs(dense_squared - squared).max()), 1e-5)
        seconds = context.seconds(lambda s=search, v=vectors_nd: s.search(v), 2)  # type: ignore[misc]
        if m == 1_024:
            marks.at_least(f"rows_per_second_{m}", rows / seconds, 1e6, speed=True)
        else:
            marks.note(f"rows_per_second_{m}", rows / seconds)


def check_fit(context: Context, marks: Marks) -> None:
    """A balanced fit on the device against one on two CPU cores, by time per row and iteration."""
    m, rows = context.size(1_024, 16), context.size(2_000_000, 1_500)
    few = context.size(60_000, 1_500)  # the fit on CPUs takes too long for all rows
    config = FineConfig(centers=m, iterations=context.size(4, 2), init="random")
    rows_nd = unit_rows(rows, unit_rows(m // 2, seed=2).astype(np.float32))
    here, seconds_here = _fit(LocalRows(rows_nd[:few], _FIT_THREADS), config)
    there, _ = _fit(DeviceRows(rows_nd[:few], context.device), config)
    marks.at_most("objective_ratio", there.fitted_inertia / here.fitted_inertia, 1.02)
    marks.note("balance_score_device", there.balance_score)
    marks.note("balance_score_cpu", here.balance_score)
    whole, seconds_whole = _fit(DeviceRows(rows_nd, context.device), config)
    cpu_row = seconds_here / (few * len(here.history))
    device_row = seconds_whole / (rows * len(whole.history))
    marks.note("fit_seconds", seconds_whole)
    marks.at_least("times_two_core_cpu_fit", cpu_row / device_row, 10.0, speed=True)


def _fit(sample: SampleRows, config: FineConfig) -> tuple[FineFit, float]:
    began = time.perf_counter()
    fit = fit_rows(sample, config, 0)
    return fit, time.perf_counter() - began


def check_embedder(context: Context, marks: Marks) -> None:
    """BERT-base with random weights over captions of 1 to 40 words: captions a second, and cosines to float32."""
    folder = context.folder / "bert"
    config = (
        transformers.BertConfig()
        if not context.quick
        else transformers.BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")},
    ).save_pretrained(folder)
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(WORDS, int(n))) for n in rng.integers(1, 41, context.size(200_000, 300))]
    threads = min(8, len(os.sched_getaffinity(0)))

    def encoder(dtype: str) -> HuggingFaceEncoder:
        fields = EncoderConfig.model_validate({"model": str(folder), "dtype": dtype})
        return HuggingFaceEncoder(fields, EncoderPlacement(device=str(context.device)), threads)

    some = captions[:: max(1, len(captions) // 2_000)]
    exact_bd, fast_bd = encoder("float32").encode(some), encoder("bfloat16").encode(some)
    marks.at_least("least_cosine_to_float32", float((exact_bd * fast_bd).sum(axis=1).min()), 0.999)
    fast = encoder("auto")
    fast.encode(some)
    began = time.perf_counter()
    fast.encode(captions)
    marks.at_least("captions_per_second", len(captions) / (time.perf_counter() - began), 50_000.0, speed=True)


def check_experts(context: Context, marks: Marks) -> None:
    """Four experts on batches of 32 images, in float32, in TF32 and in bfloat16."""
    architecture = small_tower(context.folder / "tower") if context.quick else "ViT-B-32"
    folder = Location(str(context.folder / "expert"))
    save_clip(folder, built(run_config(context.folder, architecture, 32, 1)))
    seconds, rows = {}, {}
    for name, precision, product in (
        ("float32", "float32", "highest"),
        ("tf32", "float32", "high"),
        ("bfloat16", "bfloat16", "highest"),
    ):
        torch.set_float32_matmul_precision(product)
        experts = [Expert(folder, str(context.device), _precision(precision)) for _ in range(4)]
        pixels = np.random.default_rng(0).integers(0, 256, (32, *experts[0].image_size, 3)).astype(np.uint8)
        rows[name] = experts[0].encode_pixels(pixels)
        seconds[name] = context.seconds(
            lambda some=experts, given=pixels: [expert.encode_pixels(given) for expert in some],  # type: ignore[misc]
            context.size(10, 1),
        )
        marks.note(f"images_per_second_{name}", 32.0 / seconds[name])
    for name in ("tf32", "bfloat16"):
        marks.at_least(f"cosine_{name}", float((rows["float32"] * rows[name]).sum(axis=1).min()), 0.9995)
    marks.at_least("bfloat16_over_float32", seconds["float32"] / seconds["bfloat16"], 4.0, speed=True)


def _precision(name: str) -> Precision:
    return "bfloat16" if name == "bfloat16" else "float32"
