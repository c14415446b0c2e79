"""open_clip can load an expert folder; an error in one is reported in a sentence that names the file."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from python_process import python_command
from serving import picture

from mode_ray.config.train import ModelConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.models.architecture import CONFIG_FILE, WEIGHTS_FILE
from mode_ray.models.clip import ClipModel, build_clip, load_clip, save_clip
from mode_ray.models.encode import Expert
from mode_ray.pairs.images import decode_image
from mode_ray.storage import Location

TEXTS = ["a red square", "a green square"]
WITHOUT_THIS_PACKAGE = """
import sys
import numpy, open_clip, torch
from PIL import Image
folder = sys.argv[1]
model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red square", "a green square"])
with torch.inference_mode():
    image = transform(Image.open(sys.argv[2])).unsqueeze(0)
    images, texts = model.eval().encode_image(image, normalize=True), model.encode_text(tokens, normalize=True)
numpy.savez(sys.argv[3], images=images, texts=texts, scale=float(model.logit_scale.exp()))
assert not any(name.split(".")[0] == "mode_ray" for name in sys.modules)
"""


@pytest.fixture
def folder(tmp_path: Path, new_clip: Callable[[], ClipModel]) -> Location:
    """An expert folder."""
    location = Location.parse(str(tmp_path / "expert"))
    save_clip(location, new_clip())
    return location


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    """A picture in a file of its own."""
    file = tmp_path / "picture.png"
    file.write_bytes(picture(0))
    return file


def config(architecture: Path | str, pretrained: str | None = None) -> ModelConfig:
    return ModelConfig(architecture=str(architecture), pretrained=pretrained, precision="float32")


def assert_same_weights(left: ClipModel, right: ClipModel) -> None:
    for name, tensor in left.module.state_dict().items():
        assert torch.equal(tensor, right.module.state_dict()[name]), name


class TestFolders:
    def test_open_clip_alone_gives_the_same_features(
        self, folder: Location, picture_file: Path, tmp_path: Path
    ) -> None:
        features = tmp_path / "features.npz"
        script = python_command(WITHOUT_THIS_PACKAGE, folder.path, picture_file, features)
        subprocess.run(script, check=True, cwd=tmp_path, capture_output=True)
        alone, expert = np.load(features), Expert(folder, "cpu")
        image = expert.prepare(decode_image(picture_file.read_bytes(), 10**6, "picture.png"))
        np.testing.assert_allclose(expert.encode_images(image.unsqueeze(0)), alone["images"], atol=1e-6)
        np.testing.assert_allclose(expert.encode_texts(TEXTS), alone["texts"], atol=1e-6)
        assert expert.logit_scale == pytest.approx(float(alone["scale"]))

    def test_what_is_saved_is_loaded(self, folder: Location, new_clip: Callable[[], ClipModel]) -> None:
        assert_same_weights(load_clip(folder), new_clip())
        assert load_clip(folder).config == json.loads(json.dumps(new_clip().config))

    def test_preprocessing_is_written_out(self, folder: Location) -> None:
        preprocess = json.loads((folder / CONFIG_FILE).read_text())["preprocess_cfg"]
        assert set(preprocess) == {"mean", "std", "interpolation", "resize_mode"}

    def test_preprocessing_of_its_own_is_kept(self, architecture: Path, tmp_path: Path) -> None:
        written = json.loads((architecture / CONFIG_FILE).read_text())
        written["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
        (tmp_path / CONFIG_FILE).write_text(json.dumps(written))
        clip = build_clip(config(tmp_path), seed=0)
        assert clip.config["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
        white = Image.new("RGB", (16, 16), (255, 255, 255))
        assert clip.eval_transform(white).max() == pytest.approx((1 - 0.5) / 0.25)

    def test_embeddings_are_of_unit_length_and_texts_of_any_number(self, folder: Location) -> None:
        expert = Expert(folder, "cpu")
        many = expert.encode_texts([f"text {number % 3}" for number in range(300)])
        assert (many.shape, many.dtype) == ((300, 16), np.dtype(np.float32))
        np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
        # Blocks of texts are encoded apart: their border must not be seen.
        np.testing.assert_allclose(many[255], many[258], atol=1e-6)
        images = expert.encode_images(torch.zeros(2, 3, 16, 16))
        assert (images.shape, images.dtype) == ((2, 16), np.dtype(np.float32))
        np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)

    def test_models_of_a_process_share_the_tokenizer_s_tables_and_no_words(self, folder: Location) -> None:
        first, second = (cast("Any", load_clip(folder).tokenizer) for _ in range(2))
        assert first.bpe_ranks is second.bpe_ranks
        words_before = dict(second.cache)
        tokens = first(["an unheard of word"])
        assert second.cache == words_before != first.cache
        assert torch.equal(tokens, second(["an unheard of word"]))
        assert tokens.shape == (1, 16)


class TestDamagedFolders:
    @pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
    def test_a_missing_file_is_named(self, folder: Location, name: str) -> None:
        (folder / name).delete()
        with pytest.raises(DataError, match=f"{name}: missing; the model's training is not finished"):
            load_clip(folder)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere/open_clip_config\.json: missing"):
            Expert(Location.parse(str(tmp_path / "nowhere")))

    @pytest.mark.parametrize(
        "content",
        ["{not json", "[]", "{}", '{"model_cfg": 5}', '{"model_cfg": {"embed_dim": 16}}'],
        ids=["no-json", "list", "empty", "number", "half"],
    )
    def test_a_config_that_is_none_is_named(self, folder: Location, content: str) -> None:
        (folder / CONFIG_FILE).write_text(content)
        with pytest.raises(DataError, match=f"expert/{CONFIG_FILE}: not "):
            load_clip(folder)

    def test_truncated_weights_are_named(self, folder: Location) -> None:
        (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:1000])
        with pytest.raises(DataError, match=f"{WEIGHTS_FILE}: damaged"):
            load_clip(folder)

    def test_weights_of_another_model_are_named(self, folder: Location) -> None:
        (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save({"logit_scale": torch.zeros(())}))
        with pytest.raises(DataError, match=f"{WEIGHTS_FILE}: damaged, or from another model"):
            load_clip(folder)


class TestBuilding:
    def test_the_seed_decides_the_weights(self, architecture: Path, new_clip: Callable[[], ClipModel]) -> None:
        assert_same_weights(build_clip(config(architecture), seed=7), new_clip())
        other = build_clip(config(architecture), seed=8)
        assert not torch.equal(other.module.visual.proj, new_clip().module.visual.proj)  # type: ignore[union-attr, arg-type]

    def test_an_unknown_architecture_is_a_usage_error(self) -> None:
        with pytest.raises(UsageError, match=r"train\.model\.architecture: ViT-Z-99: neither a folder nor"):
            build_clip(config("ViT-Z-99"), seed=0)

    def test_a_folder_without_a_config_is_a_usage_error(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"train\.model\.architecture: .*open_clip_config\.json does not exist"):
            build_clip(config(tmp_path), seed=0)

    @pytest.mark.parametrize("content", ["{not json", '{"model_cfg": {"embed_dim": 16}}'])
    def test_a_folder_with_a_broken_config_is_a_usage_error(self, tmp_path: Path, content: str) -> None:
        (tmp_path / CONFIG_FILE).write_text(content)
        with pytest.raises(UsageError, match=r"^train\.model\.architecture: "):
            build_clip(config(tmp_path), seed=0)

    def test_pretrained_folder_takes_the_weights_in_it(
        self, folder: Location, new_clip: Callable[[], ClipModel]
    ) -> None:
        assert_same_weights(build_clip(config(folder.path, "folder"), seed=1), new_clip())

    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_pretrained_may_be_a_checkpoint_file(
        self, architecture: Path, tmp_path: Path, new_clip: Callable[[], ClipModel], suffix: str
    ) -> None:
        file, weights = tmp_path / f"weights.{suffix}", new_clip().module.state_dict()
        if suffix == "pt":
            torch.save({"state_dict": weights}, file)
        else:
            safetensors.torch.save_file(weights, file)
        assert_same_weights(build_clip(config(architecture, str(file)), seed=1), new_clip())

    @pytest.mark.parametrize("content", [None, b"no weights", b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00truetR."])
    def test_a_checkpoint_that_is_none_is_a_usage_error(
        self, architecture: Path, tmp_path: Path, content: bytes | None
    ) -> None:
        file = tmp_path / "weights.pt"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UsageError, match=r"train\.model\.pretrained: .*weights\.pt: "):
            build_clip(config(architecture, str(file)), seed=0)
