"""Models of the Hugging Face hub as a start, and what an expert folder needs to be loaded without this package.

The hub is a local cache, laid out as huggingface_hub lays it out, in a process of its own: the real way to the files.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from python_process import python_command

from mode_ray.config.train import ModelConfig
from mode_ray.errors import UsageError
from mode_ray.models.architecture import CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE, clip_config_of
from mode_ray.models.check import check_architecture
from mode_ray.models.clip import ClipModel, build_clip, load_clip, save_clip
from mode_ray.models.encode import Expert
from mode_ray.storage import Location

REVISION = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret
HUB_NAME = "some-lab/tiny-clip"
TEXTS = ["a red square", "a green square", "a blue square number seven"]
WORDS = ["[PAD]", "[UNK]", "[EOS]", "a", "red", "green", "blue", "square", "number"]
BUILD = """
import sys
from mode_ray.storage import Location
from mode_ray.models.check import check_architecture
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.config.train import ModelConfig
config = ModelConfig(pretrained="hf-hub:some-lab/tiny-clip", precision="float32")
check_architecture(config)
save_clip(Location.parse(sys.argv[1]), build_clip(config, seed=3))
"""
OPEN_CLIP_ALONE = """
import sys
import numpy, open_clip, torch
folder = sys.argv[1]
model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(sys.argv[3:])
images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
with torch.inference_mode():
    texts = model.eval().encode_text(tokens, normalize=True)
    images = model.encode_image(images, normalize=True)
    bias = float("nan") if model.logit_bias is None else float(model.logit_bias)
assert not any(name.split(".")[0] == "mode_ray" for name in sys.modules)
numpy.savez(sys.argv[2], tokens=tokens, texts=texts, images=images, bias=bias)
"""


def put_on_hub(home: Path, name: str, source: Path) -> None:
    """Lay a model's files out as huggingface_hub caches them."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    # The cache remembers what the hub does not have; transformers asks for this one.
    (repository / ".no_exist" / REVISION).mkdir(parents=True)
    (repository / ".no_exist" / REVISION / "config.json").touch()


def run(script: str, *arguments: object, home: Path | None = None) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if home is not None:
        environment["HF_HOME"] = str(home)
    command = python_command(script, *arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def save_word_tokenizer(folder: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=WORDS[1]))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=WORDS[0], unk_token=WORDS[1], eos_token=WORDS[2]
    ).save_pretrained(folder)


@pytest.fixture
def tiny(tmp_path: Path, new_clip: Callable[[], ClipModel]) -> Path:
    """The folder of a tiny model, as it would lie on the hub."""
    folder = tmp_path / "tiny"
    save_clip(Location.parse(str(folder)), new_clip())
    return folder


def with_word_tokenizer(folder: Path) -> None:
    """Give a folder's model a tokenizer of its own, named as of the hub."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": HUB_NAME}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_word_tokenizer(folder)


class TestHubModels:
    def test_the_hubs_weights_config_and_tokenizer_become_an_expert_folder(self, tiny: Path, tmp_path: Path) -> None:
        with_word_tokenizer(tiny)
        put_on_hub(tmp_path / "home", HUB_NAME, tiny)
        made = Location.parse(str(tmp_path / "made"))
        run(BUILD, made, home=tmp_path / "home")
        written = safetensors.torch.load((made / WEIGHTS_FILE).read_bytes())
        given = safetensors.torch.load((tiny / WEIGHTS_FILE).read_bytes())
        assert written.keys() == given.keys()
        assert all(torch.equal(written[name], given[name]) for name in given)
        assert json.loads((made / CONFIG_FILE).read_text()) == json.loads((tiny / CONFIG_FILE).read_text())
        # Loaded again where there is no hub at all: the tokenizer came along.
        assert load_clip(made).tokenizer(["red square"])[0, :3].tolist() == [4, 7, 0]
        run(OPEN_CLIP_ALONE, made, tmp_path / "alone.npz", *TEXTS, home=tmp_path / "no-home")
        alone = np.load(tmp_path / "alone.npz")
        np.testing.assert_allclose(Expert(made, "cpu").encode_texts(TEXTS), alone["texts"], atol=1e-6)
        assert alone["tokens"][0, :4].tolist() == [3, 4, 7, 0]

    def test_a_model_that_is_not_there_is_named(self) -> None:
        config = ModelConfig(pretrained="hf-hub:some-lab/no-such-model")
        with pytest.raises(UsageError, match=r"^train\.model\.pretrained: hf-hub:some-lab/no-such-model: not in this"):
            check_architecture(config)

    @pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:alone", "hf-hub:a/b/c", "hf-hub:../../etc"])
    def test_a_wrong_form_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="write hf-hub:ORG/NAME"):
            check_architecture(ModelConfig(pretrained=name))

    def test_the_hub_decides_the_architecture(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_on_hub(tmp_path, HUB_NAME, tiny)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        config = ModelConfig(architecture="ViT-L-14", pretrained=f"hf-hub:{HUB_NAME}")
        assert clip_config_of(config)["model_cfg"]["embed_dim"] == 16

    def test_a_hub_model_without_weights_is_named(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tiny / WEIGHTS_FILE).unlink()
        put_on_hub(tmp_path, HUB_NAME, tiny)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        with pytest.raises(UsageError, match=r"^train\.model\.pretrained: hf-hub:some-lab/tiny-clip: Failed to"):
            build_clip(ModelConfig(pretrained=f"hf-hub:{HUB_NAME}"), seed=0)


class TestTokenizersOfTheirOwn:
    def test_they_are_written_with_the_model(self, tiny: Path, tmp_path: Path) -> None:
        with_word_tokenizer(tiny)
        clip = build_clip(ModelConfig(architecture=str(tiny), precision="float32"), seed=0)
        folder = Location.parse(str(tmp_path / "expert"))
        save_clip(folder, clip)
        names = {file.name for file in folder.files()}
        assert names == {CONFIG_FILE, WEIGHTS_FILE, *clip.text_files}
        assert "tokenizer.json" in names
        assert set(clip.text_files) <= set(TOKENIZER_FILES)
        assert torch.equal(load_clip(folder).tokenizer(TEXTS), clip.tokenizer(TEXTS))

    def test_open_clips_own_needs_no_file(self, new_clip: Callable[[], ClipModel]) -> None:
        assert new_clip().text_files == {}

    def test_one_that_cannot_be_had_is_a_usage_error(self, tiny: Path) -> None:
        with_word_tokenizer(tiny)
        for name in TOKENIZER_FILES:
            (tiny / name).unlink(missing_ok=True)
        with pytest.raises(UsageError, match=r"^train\.model\.architecture: .*tiny"):
            build_clip(ModelConfig(architecture=str(tiny)), seed=0)


class TestSigmoidModels:
    def test_the_bias_is_in_the_folder_and_open_clip_reads_it(self, architecture: Path, tmp_path: Path) -> None:
        config = json.loads((architecture / CONFIG_FILE).read_text())
        config["model_cfg"] |= {"init_logit_bias": -10.0, "init_logit_scale": 2.302585}
        (tmp_path / "sigmoid").mkdir()
        (tmp_path / "sigmoid" / CONFIG_FILE).write_text(json.dumps(config))
        clip = build_clip(ModelConfig(architecture=str(tmp_path / "sigmoid"), precision="float32"), seed=0)
        with torch.no_grad():
            clip.module.logit_bias.fill_(-7.5)  # type: ignore[operator]  # as trained
        folder = Location.parse(str(tmp_path / "expert"))
        save_clip(folder, clip)
        run(OPEN_CLIP_ALONE, folder, tmp_path / "alone.npz", *TEXTS)
        alone = np.load(tmp_path / "alone.npz")
        assert float(alone["bias"]) == pytest.approx(-7.5)
        np.testing.assert_allclose(Expert(folder, "cpu").encode_texts(TEXTS), alone["texts"], atol=1e-6)
        images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
        np.testing.assert_allclose(Expert(folder, "cpu").encode_images(images), alone["images"], atol=1e-6)


def test_weights_of_another_activation_are_refused() -> None:
    """open_clip only warns; every expert would start from a broken model."""
    with pytest.raises(UsageError, match=r"QuickGELU: set train\.model\.architecture to ViT-B-32-quickgelu"):
        build_clip(ModelConfig(architecture="ViT-B-32", pretrained="openai"), seed=0)
