"""Experts with a common trunk, exported as one trunk and a head for each of them."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import mode_ray
from mode_ray.cli import main
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.export.run import ExportRequest, run_export
from mode_ray.models.clip import load_clip, save_clip
from mode_ray.run_directory import stage_directories
from mode_ray.storage import Location

LABELS = ["cat", "dog", "bus"]


@pytest.fixture
def config(make_config: Callable[..., RunConfig], tmp_path: Path) -> RunConfig:
    """A copy of the run whose experts have the trunks of expert 0, and projections of their own."""
    run = tmp_path / "run"
    shutil.copytree(make_config().run, run)
    config = make_config().model_copy(update={"run": str(run)})
    folders = experts_of(config)
    clip = load_clip(folders[0])
    module: Any = clip.module
    for folder in folders:
        with torch.no_grad():
            module.visual.proj.add_(torch.randn_like(module.visual.proj), alpha=0.2)
            module.text_projection.add_(torch.randn_like(module.text_projection), alpha=0.2)
        save_clip(folder, clip)
    return config


def experts_of(config: RunConfig) -> Sequence[Location]:
    return [stage_directories(config.directory)["train"] / f"n3/{number:02d}" for number in range(3)]


def export(config: RunConfig, target: Path) -> Path:
    run_export(config, ExportRequest(target=Location.parse(str(target)), shared_trunk=True))
    return target


def test_it_is_the_ensemble_of_the_same_experts_in_plain_open_clip(config: RunConfig, tmp_path: Path) -> None:
    folder = export(config, tmp_path / "out")
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*.safetensors")}
    whole = (Path(experts_of(config)[0].path) / "open_clip_model.safetensors").stat().st_size
    assert sizes["trunk/open_clip_trunk.safetensors"] < whole
    assert sizes["expert-02/open_clip_head.safetensors"] < 0.01 * whole
    ensemble = mode_ray.load(folder, device="cpu")
    images = [Image.effect_noise((40, 24), 60 + 40 * number).convert("RGB") for number in range(3)]
    for number, expert in ensemble.experts.items():
        name = f"local-dir:{experts_of(config)[number].path}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        with torch.inference_mode():
            images_bd = model.eval().encode_image(torch.stack([preprocess(i) for i in images]), normalize=True)
            texts_ld = model.encode_text(open_clip.get_tokenizer(name)(LABELS), normalize=True)
        np.testing.assert_allclose(expert.encode_image(images), images_bd.numpy(), atol=1e-5)
        np.testing.assert_allclose(expert.encode_text(LABELS), texts_ld.numpy(), atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "The weights that all experts have in common are in `trunk`" in card
    assert "the 3 experts share 9" in card


def test_a_trunk_that_differs_is_refused_and_nothing_is_left(config: RunConfig, tmp_path: Path) -> None:
    folder = experts_of(config)[1]
    clip = load_clip(folder)
    module: Any = clip.module
    with torch.no_grad():
        module.visual.conv1.weight.add_(1e-3)
        module.token_embedding.weight.add_(1e-3)
    save_clip(folder, clip)
    said = "the image trunk of experts 1 and the text trunk of experts 1 differs from that of expert 0"
    with pytest.raises(UsageError, match=said):
        export(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_without_its_trunk_is_refused(config: RunConfig, tmp_path: Path) -> None:
    folder = export(config, tmp_path / "out")
    (folder / "trunk" / "open_clip_trunk.safetensors").unlink()
    with pytest.raises(DataError, match=r"trunk/open_clip_trunk\.safetensors: missing"):
        mode_ray.load(folder)


def test_other_options_do_not_go_with_it(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --average and --expert"):
        run_export(config, ExportRequest(target=Location.parse(str(tmp_path / "out")), shared_trunk=True, expert=1))


def test_status_shows_what_is_shared(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(config.run) / "config.yaml").write_text(dump_config(config))
    for status in Path(config.run).rglob("status.json"):
        status.unlink()  # they are empty here
    assert main(["status", config.run]) == 0
    assert "3 experts share 9" in " ".join(capsys.readouterr().out.split())
