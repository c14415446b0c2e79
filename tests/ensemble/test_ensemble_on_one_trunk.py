"""An ensemble whose experts have equal trunks: one trunk in memory, and the answers of plain open_clip."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from run_of_before import COLOURS, TEMPLATES, HeldOut
from scipy.special import softmax

import mode_ray
from mode_ray.ensemble.ensemble import Ensemble
from mode_ray.models.clip import load_clip, save_clip
from mode_ray.storage import Location

PROMPTS = [template.format(colour) for colour in COLOURS for template in TEMPLATES]
IMAGES = 8


@pytest.fixture(scope="module")
def on_one_trunk(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, with an expert 1 that has the trunks of expert 0 and other projections."""
    copy = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(run, copy)
    clip = load_clip(Location.parse(str(copy / "experts/n2/00")))
    module: Any = clip.module
    with torch.no_grad():
        for projection in (module.visual.proj, module.text_projection):
            projection.add_(torch.randn_like(projection), alpha=0.3 * projection.std().item())
        module.logit_scale.add_(0.2)
    save_clip(Location.parse(str(copy / "experts/n2/01")), clip)
    return copy


@pytest.fixture(scope="module")
def shared(on_one_trunk: Path) -> Ensemble:
    return mode_ray.load(on_one_trunk, device="cpu")


def test_embeddings_scores_and_probabilities_are_those_of_plain_open_clip(
    shared: Ensemble, on_one_trunk: Path, held_out: HeldOut
) -> None:
    images = held_out.images[:IMAGES]
    found = shared.classify(images, COLOURS, TEMPLATES, rule="soft")
    assert shared.model(0).image_trunk is shared.model(1).image_trunk
    assert shared.model(0).text_trunk is shared.model(1).text_trunk
    scores_il, scale = np.zeros((IMAGES, len(COLOURS))), 0.0
    sides = []
    for expert, weight in enumerate(found.weights):
        name = f"local-dir:{on_one_trunk / 'experts/n2' / f'{expert:02d}'}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        with torch.inference_mode():
            images_bd = model.eval().encode_image(torch.stack([preprocess(i) for i in images]), normalize=True)
            texts_td = model.encode_text(open_clip.get_tokenizer(name)(PROMPTS), normalize=True)
            classes = texts_td.reshape(len(COLOURS), len(TEMPLATES), -1).mean(dim=1)
            cosines_il = images_bd @ torch.nn.functional.normalize(classes, dim=-1).T
        scores_il += weight * cosines_il.numpy()
        scale += weight * model.logit_scale.exp().item()
        sides.append(images_bd.numpy())
        np.testing.assert_allclose(shared.experts[expert].encode_text(PROMPTS), texts_td.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.scores, scores_il, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, softmax(scale * scores_il, axis=1), atol=1e-5)
    image_sides = shared.encode_image(images).reshape(IMAGES, 2, -1)
    for expert, side in enumerate(sides):
        found_bd = image_sides[:, expert]
        np.testing.assert_allclose(found_bd / np.linalg.norm(found_bd, axis=1, keepdims=True), side, atol=1e-5)


def test_a_trunk_runs_once_an_image_also_as_an_open_clip_model(shared: Ensemble, held_out: HeldOut) -> None:
    task = shared.task(COLOURS, rule="uniform")
    model, preprocess, _ = shared.create_model_and_transforms(task)
    runs: list[int] = []
    module: Any = shared.model(0).module
    handle = module.visual.transformer.register_forward_hook(lambda *_: runs.append(1))
    rows = model.encode_image(torch.stack([preprocess(image) for image in held_out.images[:2]]))
    handle.remove()
    assert runs == [1]
    assert rows.shape == (2, shared.model(0).dimension * 2)
