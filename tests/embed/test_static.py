"""Static word tables: the mean of the tokens' vectors, or zero without a known token."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.embed.encoder import CaptionEncoder
from mode_ray.embed.load import load_encoder
from mode_ray.errors import UsageError
from mode_ray.util.packages import resolve_folder

WORDLLAMA = "package:wordllama"


def load(model: str | Path, max_tokens: int = 64) -> CaptionEncoder:
    """The encoder of a config."""
    return load_encoder(EncoderConfig(kind="static", model=str(model), max_tokens=max_tokens), EncoderPlacement())


def save_tokenizer(file: Path) -> None:
    """A tokenizer of two words."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0, "dog": 1}))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a table of two words."""
    save_tokenizer(tmp_path / "tokenizer.json")
    save_file({"embeddings": torch.tensor([[3.0, 0.0], [0.0, 3.0]])}, tmp_path / "model.safetensors")
    return tmp_path


class TestWordLlama:
    def test_it_agrees_with_sentence_transformers(self) -> None:
        captions = ["a red cat on a sofa", "Ein Hündchen läuft", "北京", "👩‍🚀 in space", "x", "word " * 50]
        root = Path(resolve_folder(WORDLLAMA, "model"))
        (weights,), (tokenizer,) = root.rglob("*.safetensors"), root.rglob("*tokenizer*.json")
        (table_vd,) = load_file(weights).values()
        peer = SentenceTransformer(
            modules=[
                StaticEmbedding(tokenizers.Tokenizer.from_file(str(tokenizer)), embedding_weights=table_vd.float())
            ],
            device="cpu",
        )
        theirs_bd = peer.encode(captions, normalize_embeddings=True)
        ours_bd = load(WORDLLAMA).encode(captions)
        assert ours_bd.dtype == np.float32
        assert ours_bd.shape == (len(captions), 256)
        assert (ours_bd * theirs_bd).sum(axis=1).min() >= 0.999

    def test_an_empty_caption_gives_a_zero_row_and_none_gives_none(self) -> None:
        encoder = load(WORDLLAMA)
        norms = np.linalg.norm(encoder.encode(["", "a cat", ""]), axis=1)
        assert norms == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
        assert encoder.encode([]).shape == (0, encoder.dimension)

    def test_many_captions_are_the_same_as_few(self) -> None:
        encoder = load(WORDLLAMA)
        captions = [f"caption number {number}" for number in range(8300)]
        assert np.array_equal(encoder.encode(captions)[-3:], encoder.encode(captions[-3:]))


class TestOwnTables:
    def test_the_mean_of_the_tokens_scaled_to_unit_norm(self, folder: Path) -> None:
        rows = load(folder).encode(["cat", "dog", "cat dog", "cat cat cat", ""])
        half = np.sqrt(0.5)
        expected = np.array([[1, 0], [0, 1], [half, half], [1, 0], [0, 0]])
        assert rows == pytest.approx(expected, abs=1e-6)

    def test_long_captions_are_cut(self, folder: Path) -> None:
        assert load(folder, max_tokens=2).encode(["cat cat dog dog dog"]) == pytest.approx(np.array([[1.0, 0.0]]))


class TestRefused:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"encoder\.model: .*absent: expected one .* found 0"):
            load(tmp_path / "absent")

    def test_no_table(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(UsageError, match=r"expected one \*\.safetensors below .*, found 0"):
            load(folder)

    def test_two_tables(self, folder: Path) -> None:
        save_file({"embeddings": torch.zeros(2, 2)}, folder / "other.safetensors")
        with pytest.raises(UsageError, match=r"expected one \*\.safetensors below .*, found 2"):
            load(folder)

    def test_two_matrices_in_one_table(self, folder: Path) -> None:
        save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, folder / "model.safetensors")
        with pytest.raises(UsageError, match=r"model\.safetensors: contains 2 matrices"):
            load(folder)

    def test_no_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(UsageError, match=r"tokenizer\*\.json below .*, found 0"):
            load(folder)


class TestPackagedFolders:
    def test_other_names_are_left_alone(self) -> None:
        assert resolve_folder("princeton-nlp/x", "encoder.model") == "princeton-nlp/x"

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("package:no_such_package/x", "no package 'no_such_package' is installed; pip install it"),
            ("package:no_such.package/x", "no package 'no_such.package' is installed"),
            ("package:", "no package '' is installed"),
            ("package:wordllama/absent", "the installed package has no absent"),
            ("package:this", "no package 'this' is installed"),
        ],
    )
    def test_what_is_not_there_is_named_with_its_field(self, name: str, reason: str) -> None:
        with pytest.raises(UsageError, match=r"train\.model\.architecture: ") as caught:
            resolve_folder(name, "train.model.architecture")
        assert reason in str(caught.value)
