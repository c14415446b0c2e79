"""Checkpoints as people bring them: wrapped, compiled, damaged, of another model. The values are compared."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import safetensors.torch
import torch

from mode_ray.config.train import ModelConfig, TrainConfig
from mode_ray.errors import UsageError
from mode_ray.models.architecture import CONFIG_FILE
from mode_ray.models.check import _check_checkpoint, check_model
from mode_ray.models.clip import ClipModel, build_clip

CASES = Path(__file__).resolve().parents[3] / "shared" / "field" / "cases_data.py"
State = Mapping[str, torch.Tensor]


@pytest.fixture
def state(new_clip: Callable[[], ClipModel]) -> State:
    return new_clip().module.state_dict()


def config(architecture: Path | str, pretrained: Path | str | None) -> ModelConfig:
    return ModelConfig(architecture=str(architecture), pretrained=None if pretrained is None else str(pretrained))


def check(model: ModelConfig, *, siglip: bool = False) -> str:
    """What the check before the first stage says, without its process of its own; empty if nothing."""
    try:
        _check_checkpoint(model, logit_bias=siglip)
    except UsageError as error:
        return str(error)
    return ""


def with_prefix(state: State, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def compiled_blocks(state: State) -> dict[str, torch.Tensor]:
    return {name.replace("resblocks.0.", "resblocks.0._orig_mod."): tensor for name, tensor in state.items()}


class TestForms:
    @pytest.mark.parametrize(
        "saved",
        [
            dict,
            lambda state: {"state_dict": with_prefix(state, "module."), "epoch": 27, "name": "run", "optimizer": {}},
            lambda state: with_prefix(state, "_orig_mod."),
            lambda state: {"model": with_prefix(state, "module._orig_mod."), "step": 5},
            lambda state: {"state_dict": with_prefix(state, "model._orig_mod.module.")},
            lambda state: {"checkpoint": 1, "model_state_dict": compiled_blocks(state)},
            lambda state: {"state_dict": {"model": dict(state)}},
            lambda state: {name: tensor.half() for name, tensor in state.items()},
        ],
        ids=["bare", "open_clip", "compiled", "both", "three", "blocks", "nested", "half"],
    )
    def test_wrappings_are_taken_off(
        self, architecture: Path, tmp_path: Path, state: State, saved: Callable[[State], Any]
    ) -> None:
        torch.save(saved(state), tmp_path / "epoch_27.pt")
        model = config(architecture, tmp_path / "epoch_27.pt")
        assert check(model) == ""
        built = build_clip(model, seed=1).module.state_dict()
        assert built.keys() == state.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(built[name], tensor, atol=1e-3, rtol=1e-3)

    def test_safetensors_by_any_name(self, architecture: Path, tmp_path: Path, state: State) -> None:
        safetensors.torch.save_file(dict(state), tmp_path / "model.bin")
        assert check(config(architecture, tmp_path / "model.bin")) == ""

    def test_the_format_of_old_pytorch(self, architecture: Path, tmp_path: Path, state: State) -> None:
        torch.save(dict(state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        assert check(config(architecture, tmp_path / "old.pth")) == ""

    def test_a_larger_context_and_image_are_resized_as_by_open_clip(
        self, architecture: Path, tmp_path: Path, state: State
    ) -> None:
        wider = json.loads((architecture / CONFIG_FILE).read_text())
        wider["model_cfg"]["vision_cfg"]["image_size"] = 32
        wider["model_cfg"]["text_cfg"]["context_length"] = 20
        (tmp_path / "wider").mkdir()
        (tmp_path / "wider" / CONFIG_FILE).write_text(json.dumps(wider))
        torch.save(dict(state), tmp_path / "small.pt")
        model = config(tmp_path / "wider", tmp_path / "small.pt")
        assert check(model) == ""
        assert build_clip(model, seed=0).module.state_dict()["positional_embedding"].shape == (20, 16)

    def test_clip_weights_are_a_start_for_siglips_loss(self, architecture: Path, tmp_path: Path, state: State) -> None:
        torch.save(dict(state), tmp_path / "clip.pt")
        model = config(architecture, tmp_path / "clip.pt")
        assert check(model, siglip=True) == ""
        assert build_clip(model, 0, logit_bias=True).module.state_dict()["logit_bias"].item() == 0.0

    def test_it_may_be_on_s3(self, architecture: Path, tmp_path: Path, state: State, bucket: str) -> None:
        torch.save(dict(state), tmp_path / "epoch.pt")
        boto3.client("s3").upload_file(str(tmp_path / "epoch.pt"), bucket.removeprefix("s3://"), "epoch.pt")
        boto3.client("s3").upload_file(
            str(architecture / CONFIG_FILE), bucket.removeprefix("s3://"), f"a/{CONFIG_FILE}"
        )
        model = config(f"{bucket}/a", f"{bucket}/epoch.pt")
        assert check(model) == ""
        built = build_clip(model, seed=1).module.state_dict()
        assert all(torch.equal(built[name], tensor) for name, tensor in state.items())
        assert check(config(architecture, f"{bucket}/absent.pt")).endswith("absent.pt: no such file")


class TestPaths:
    def test_relative_ones_count_from_where_the_command_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "epoch_27.pt").touch()
        monkeypatch.chdir(tmp_path)
        model = ModelConfig(architecture="model", pretrained="epoch_27.pt")
        assert (model.architecture, model.pretrained) == (str(tmp_path / "model"), str(tmp_path / "epoch_27.pt"))

    def test_a_tilde_is_the_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/mode")
        model = ModelConfig(architecture="~/model", pretrained="~/a.pt")
        assert (model.architecture, model.pretrained) == ("/home/mode/model", "/home/mode/a.pt")

    @pytest.mark.parametrize("name", ["ViT-B-32", "package:mode_ray/presets/demo-vit", "s3://b/model", "/abs/m/"])
    def test_other_values_stay_as_they_are(self, name: str) -> None:
        assert ModelConfig(architecture=name).architecture == name


class TestRefusals:
    """Each names the field, the file and what is wrong with it."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda state: {**state, "visual.proj": torch.zeros(8, 16)},
                "visual.proj has shape [8, 16] here and [16, 16]",
            ),
            (lambda state: {k: v for k, v in state.items() if k != "ln_final.bias"}, "ln_final.bias of the arch"),
            (lambda state: {**state, "text_decoder.proj": torch.zeros(2)}, "text_decoder.proj is not in the arch"),
            (lambda state: {**state, "module.logit_scale": torch.zeros(())}, "holds logit_scale twice"),
            (lambda state: {**state, "logit_bias": torch.zeros(())}, "has a logit_bias"),
            (lambda _: {"epoch": 3, "state_dict": {}}, "holds no weights"),
            (lambda state: list(state.values()), "holds a list, not a state dict"),
        ],
    )
    def test_the_first_difference_is_named(
        self, architecture: Path, tmp_path: Path, state: State, change: Callable[[State], Any], said: str
    ) -> None:
        file = tmp_path / "epoch_27.pt"
        torch.save(change(state), file)
        message = check(config(architecture, file))
        assert message.startswith(f"train.model.pretrained: {file}: ")
        assert said in message
        assert "\n" not in message
        with pytest.raises(UsageError, match=r"^train\.model\.pretrained: "):
            build_clip(config(architecture, file), seed=0)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
    @pytest.mark.parametrize("part", [0.0, 0.5, 0.9])
    def test_a_file_that_is_empty_or_cut_off(
        self, architecture: Path, tmp_path: Path, state: State, suffix: str, part: float
    ) -> None:
        file = tmp_path / f"weights{suffix}"
        if suffix == ".pt":
            torch.save(dict(state), file)
        elif suffix == ".npz":
            np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})  # type: ignore[arg-type]
        else:
            safetensors.torch.save_file(dict(state), file)
        whole = file.read_bytes()
        file.write_bytes(whole[: int(part * len(whole))])
        message = check(config(architecture, file))
        assert message.startswith(f"train.model.pretrained: {file}: ")
        assert "is empty" in message if part == 0 else "damaged, cut off or no checkpoint" in message

    def test_objects_besides_weights_are_never_built(self, architecture: Path, tmp_path: Path) -> None:
        file = tmp_path / "objects.pt"
        file.write_bytes(pickle.dumps({"path": Path("x")}))
        assert "objects besides weights" in check(config(architecture, file))

    def test_a_directory_and_a_missing_file(self, architecture: Path, tmp_path: Path) -> None:
        assert "a directory; name the checkpoint file in it" in check(config(architecture, tmp_path))
        assert check(config(architecture, tmp_path / "no.pt")).endswith(f"{tmp_path}/no.pt: no such file")

    def test_a_tag_with_a_slip_is_answered_with_those_like_it(self) -> None:
        message = check(config("ViT-B-32", "laion2b_s34_b79"))
        assert "neither a file nor a tag of the architecture ViT-B-32 (did you mean laion2b_s34b_b79k" in message

    def test_a_tag_that_cannot_be_downloaded(self) -> None:
        assert "HF_HUB_OFFLINE is set" in check(config("ViT-B-32-quickgelu", "metaclip_fullcc"))

    def test_folder_needs_a_folder_with_whole_weights(self, architecture: Path) -> None:
        with pytest.raises(UsageError, match=r"^train\.model\.pretrained: folder means the weights in the arch"):
            check_model(TrainConfig(model=config("ViT-B-32", "folder")))
        with pytest.raises(UsageError, match=r"^train\.model\.pretrained: folder: .*safetensors: missing"):
            check_model(TrainConfig(model=config(architecture, "folder")))

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            ({"embed_dim": 16}, "model_cfg has no vision_cfg and no text_cfg"),
            ({"embed_dim": 16, "vision_cfg": {}, "text_cfg": {"hf_model_name": "a/roberta"}}, "it needs a/roberta of"),
            ({"embed_dim": 16, "vision_cfg": {}, "text_cfg": {"hf_tokenizer_name": "a/words"}}, "it needs a/words of"),
        ],
    )
    def test_parts_of_an_architecture_that_are_missing(self, tmp_path: Path, model: object, said: str) -> None:
        (tmp_path / CONFIG_FILE).write_text(json.dumps({"model_cfg": model}))
        with pytest.raises(UsageError, match=rf"^train\.model\.architecture: {tmp_path}: {said}"):
            check_model(TrainConfig(model=config(tmp_path, None)))

    @pytest.mark.parametrize("slip", ["ViT-B32", "vit-b-32", "ViT-B/32", "VITB32"])
    def test_an_architecture_with_a_slip(self, slip: str) -> None:
        with pytest.raises(UsageError, match=r"^train\.model\.architecture: .*did you mean ViT-B-32\?"):
            check_model(TrainConfig(model=config(slip, None)))


def test_the_check_has_a_process_of_its_own(architecture: Path, tmp_path: Path) -> None:
    (tmp_path / "epoch.pt").write_bytes(b"no checkpoint")
    script = (
        "import sys\n"
        "from mode_ray.config.train import TrainConfig\n"
        "from mode_ray.errors import UsageError\n"
        "from mode_ray.models.check import check_model\n"
        "model = {'architecture': sys.argv[1], 'pretrained': sys.argv[2]}\n"
        "try:\n    check_model(TrainConfig.model_validate({'model': model}))\n"
        "except UsageError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(architecture), str(tmp_path / "epoch.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"train.model.pretrained: {tmp_path}/epoch.pt: ")


@pytest.mark.parametrize("fields", [{"pretrained": "absent.pt"}, {"towers": {"image": "absent.safetensors"}}])
def test_a_file_that_is_not_there_is_said_without_the_process(
    architecture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(UsageError, match=r"^train\.model\.(pretrained|towers\.image): /.*/absent\.\w+: no such file$"):
        check_model(TrainConfig.model_validate({"model": {"architecture": str(architecture), **fields}}))


@pytest.mark.skipif(not CASES.is_file(), reason=f"no generator at {CASES}")
@pytest.mark.parametrize(
    "case", ["checkpoint_of_another_width", "checkpoint_with_a_bias", "checkpoint_by_relative_path"]
)
def test_the_cases_of_the_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    spec = importlib.util.spec_from_file_location("cases_data", CASES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / case).mkdir()
    asked = module.CASES[case](tmp_path / case)
    monkeypatch.chdir(tmp_path / case)
    model = config(asked["architecture"], asked["pretrained"])
    monkeypatch.chdir(tmp_path)  # as in a worker
    message = check(model)
    if asked["expect"] == "trains":
        assert message == ""
        assert build_clip(model, seed=0).module.state_dict()["visual.proj"].shape == (32, 32)
    else:
        assert asked["expect"] in message
        assert message.startswith("train.model.pretrained: ")
