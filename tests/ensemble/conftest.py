"""The ensemble of the run of version 0.1.0, its held-out images, and a plain open_clip loop to compare with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from run_of_before import HeldOut, read_held_out

import mode_ray
from mode_ray.config.load import load_config
from mode_ray.ensemble.ensemble import Ensemble
from mode_ray.export.run import ExportRequest, run_export
from mode_ray.storage import Location


@pytest.fixture(scope="session")
def run(run_of_before: Path) -> Path:
    return run_of_before / "run"


@pytest.fixture(scope="session")
def ensemble(run: Path) -> Ensemble:
    return mode_ray.load(run, device="cpu")


@pytest.fixture(scope="session")
def held_out(run_of_before: Path) -> HeldOut:
    return read_held_out(run_of_before)


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run exported by this version; tests only read it."""
    target = tmp_path_factory.mktemp("export") / "colours"
    config = load_config(str(run / "config.yaml"), [f"run={run}"])
    run_export(config, ExportRequest(target=Location.parse(str(target))))
    return target


@pytest.fixture(scope="session")
def plain_open_clip(run: Path) -> Callable[[int, Sequence[Image.Image], Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """Unit image and text embeddings of one expert, without mode_ray."""

    def embed(expert: int, images: Sequence[Image.Image], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        name = f"local-dir:{run / 'experts' / 'n2' / f'{expert:02d}'}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        with torch.no_grad():
            images_bd = model.eval().encode_image(torch.stack([preprocess(i) for i in images]), normalize=True)
            texts_bd = model.encode_text(tokenizer(list(texts)), normalize=True)
        return images_bd.numpy(), texts_bd.numpy()

    return embed
